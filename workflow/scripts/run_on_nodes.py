"""Run a training script on all nodes of a Slurm job, one process a GPU: srun starts torchrun once a node.

    python run_on_nodes.py --nodes 2 --gpus 1 --cpus 4 train_student.py --data processed/banks …

Without a Slurm job of several nodes it runs on this machine alone, with as many processes as GPUs are asked for and
are there, and with one where none is: how many there are changes no result. SIGTERM and SIGUSR1 reach every process,
however they are sent, and what the processes end with is what the command ends with: 143 where they were stopped
(torchrun alone makes 1 of all, and kills them 30 seconds after a signal).
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

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
TOLD = (signal.SIGTERM, signal.SIGUSR1)
FIRST_PORT, PORTS = 20000, 10000  # one a Slurm job, for jobs that share a node


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; what follows the script is the script's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=1, help="of a node")
    parser.add_argument("--cpus", type=int, default=1, help="of a node")
    parser.add_argument("--join", metavar="HOST:PORT", help="of the first node; srun gives it to each one")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


def start_nodes(args: argparse.Namespace, job: int) -> None:
    """Become the srun that starts this script once on each node of a job; its exit code is the largest of theirs."""
    address = f"{socket.gethostname()}:{FIRST_PORT + job % PORTS}"
    step = [f"--nodes={args.nodes}", f"--ntasks={args.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={args.cpus}"]
    # A process that fails leaves the others waiting for it.
    command = ["srun", *step, "--kill-on-bad-exit=1", sys.executable, __file__]
    command += ["--nodes", str(args.nodes), "--gpus", str(args.gpus), "--join", address, args.script, *args.arguments]
    logger.info("training on %d nodes, the first is %s", args.nodes, address)
    os.execvp("srun", command)


def forward(number: int, _: Any) -> None:
    """Send a signal on to torchrun's children; where there are none yet, this is the end."""
    import psutil

    children = psutil.Process().children()
    if not children:
        os._exit(STOPPED)
    for child in children:
        child.send_signal(number)


def count_processes(gpus: int) -> int:
    """One a GPU of this job, one without; outside of Slurm one a GPU that is asked for and is there."""
    if on_node := os.environ.get("SLURM_GPUS_ON_NODE"):
        return max(int(on_node), 1)
    import torch

    return max(min(gpus, torch.cuda.device_count()), 1)


def get_group(args: argparse.Namespace) -> list[str]:
    """How torchrun finds the other nodes; on one machine there are none."""
    if not args.join:
        return ["--standalone"]
    host, port = args.join.rsplit(":", 1)
    group = ["--nnodes", str(args.nodes), "--node-rank", os.environ["SLURM_NODEID"], "--master-addr", host]
    return [*group, "--master-port", port]


def start_processes(args: argparse.Namespace, processes: int) -> int:
    """This node's part: torchrun; the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for number in TOLD:
        signal.signal(number, forward)
    group = [*get_group(args), "--nproc-per-node", str(processes)]
    try:
        # `--` keeps torchrun from taking --signal for a short form of its own options.
        torchrun([*group, "--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT", "--", args.script, *args.arguments])
    except ChildFailedError as error:
        return choose_exit_code(failure.exitcode for failure in error.failures.values())
    return 0


def choose_exit_code(codes: Iterable[int]) -> int:
    """One for all processes of a node: a failure before a stop, since torchrun ends the others where one has failed.

    Args:
        codes: a process that signal n has ended has -n.
    """
    found = {STOPPED if -code in TOLD else code if code >= 0 else 128 - code for code in codes}
    return min(found - {STOPPED}, default=STOPPED)


def main(argv: list[str] | None = None) -> None:
    """Start the nodes, be one of them, or run the script here."""
    args = parse_args(argv)
    if args.join:
        sys.exit(start_processes(args, count_processes(args.gpus)))
    # Inside a job Snakemake's plugin takes the number of nodes away, and has asked for as many itself.
    has_nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", args.nodes)) >= args.nodes
    if args.nodes > 1 and (job := os.environ.get("SLURM_JOB_ID")) and has_nodes:
        start_nodes(args, int(job))
    processes = count_processes(args.gpus)
    if args.nodes > 1:
        logger.warning("nodes: %d, and this is no Slurm job of as many: training on this machine alone", args.nodes)
    if processes < args.gpus:
        logger.warning("gpus_per_node: %d, and %d of them are here: %d train", args.gpus, processes, processes)
    if processes > 1:
        sys.exit(start_processes(args, processes))
    os.execv(sys.executable, [sys.executable, args.script, *args.arguments])


if __name__ == "__main__":
    run_script(main)
