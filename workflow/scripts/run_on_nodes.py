"""Run a training script on all nodes of a Slurm job, with one process per GPU: srun starts torchrun on each node.

    python run_on_nodes.py --nodes 2 --gpus 1 --cpus 4 train_student.py --data processed/banks …

Outside a Slurm job with several nodes, it runs on this machine alone, with one process per requested and available GPU,
or a single process without a GPU. The number of processes does not affect the result.

SIGTERM and SIGUSR1 are forwarded to every process. The exit code is that of the processes: 143 if they were stopped.
(torchrun alone exits with 1 in every case, and kills the processes 30 seconds after a signal.)
"""

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Any

from distill.common.errors import run_script
from distill.common.gpu_claims import claim_gpus
from distill.common.progress_file import LOG_VARIABLE, find_log

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
FIRST_PORT, PORTS = 20000, 10000  # each Slurm job has its own port, since jobs may share a node


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; arguments after the script are passed to it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, required=True, help="number of nodes")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs per node")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs per node")
    parser.add_argument(
        "--join", metavar="HOST:PORT", help="address of the first node; set for the processes that srun starts"
    )
    parser.add_argument("script", help="training script to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser.parse_args(argv)


def start_nodes(args: argparse.Namespace, job: int) -> None:
    """Replace this process by srun, which runs this script on each node and exits with the largest exit code."""
    address = f"{socket.gethostname()}:{FIRST_PORT + job % PORTS}"
    step = [f"--nodes={args.nodes}", f"--ntasks={args.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={args.cpus}"]
    # Without --kill-on-bad-exit, the other processes would wait for a failed one.
    command = ["srun", *step, "--kill-on-bad-exit=1", sys.executable, __file__]
    command += ["--nodes", str(args.nodes), "--gpus", str(args.gpus), "--join", address, args.script, *args.arguments]
    logger.info("training on %d nodes; address of the first: %s", args.nodes, address)
    if log := find_log():  # srun has the standard error of its processes
        os.environ[LOG_VARIABLE] = str(log.absolute())
    os.execvp("srun", command)


def forward(number: int, _: Any) -> None:
    """Forward a signal to torchrun's child processes; exit if there are none yet."""
    import psutil

    children = psutil.Process().children()
    if not children:
        os._exit(STOPPED)
    for child in children:
        child.send_signal(number)


def count_processes(gpus: int) -> int:
    """Return the number of processes: one per GPU of the Slurm job or, outside Slurm, per requested available GPU."""
    if on_node := os.environ.get("SLURM_GPUS_ON_NODE"):
        return max(int(on_node), 1)
    import torch

    return max(min(gpus, torch.cuda.device_count()), 1)


def get_group(args: argparse.Namespace) -> list[str]:
    """Return the torchrun options that connect the nodes."""
    if not args.join:
        return ["--standalone"]
    host, port = args.join.rsplit(":", 1)
    group = ["--nnodes", str(args.nodes), "--node-rank", os.environ["SLURM_NODEID"], "--master-addr", host]
    return [*group, "--master-port", port]


def start_processes(args: argparse.Namespace, processes: int) -> int:
    """Run torchrun on this node and return the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    group = [*get_group(args), "--nproc-per-node", str(processes)]
    try:
        # `--` keeps torchrun from taking --signal for a short form of its own options.
        torchrun([*group, "--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT", "--", args.script, *args.arguments])
    except ChildFailedError as error:
        return choose_exit_code(failure.exitcode for failure in error.failures.values())
    return 0


def choose_exit_code(codes: Iterable[int]) -> int:
    """Choose the exit code of a node: that of a failure if there is one, since torchrun then stops the other processes.

    Args:
        codes: exit codes of the processes; -n if signal n ended the process.
    """
    found = {STOPPED if -code in STOP_SIGNALS else code if code >= 0 else 128 - code for code in codes}
    return min(found - {STOPPED}, default=STOPPED)


def main(argv: list[str] | None = None) -> None:
    """Start the nodes, run as one of them, or run the script on this machine."""
    args = parse_args(argv)
    if args.join:
        sys.exit(start_processes(args, count_processes(args.gpus)))
    # Snakemake's plugin unsets SLURM_JOB_NUM_NODES in the job, which it submitted with the right number of nodes.
    has_nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", args.nodes)) >= args.nodes
    if args.nodes > 1 and (job := os.environ.get("SLURM_JOB_ID")) and has_nodes:
        start_nodes(args, int(job))
    processes = count_processes(args.gpus)
    if args.nodes > 1:
        logger.warning(
            "nodes is %d, but this is not a Slurm job with as many nodes: training on this machine alone", args.nodes
        )
    if processes < args.gpus:
        logger.warning(
            "gpus_per_node is %d, but fewer GPUs are available: training with %d processes", args.gpus, processes
        )
    if processes > 1:
        claim_gpus("cuda", processes)
        sys.exit(start_processes(args, processes))
    os.execv(sys.executable, [sys.executable, args.script, *args.arguments])


if __name__ == "__main__":
    run_script(main)
