"""vLLM over the nodes of a Slurm job: this node serves, and srun starts a process without an API on each other one."""

import os
import socket
import subprocess
from collections.abc import Sequence

from distill.common.errors import InputError

# Each Slurm job has its own port, since jobs may share a node; Linux gives outgoing connections higher ones.
FIRST_PORT, PORTS = 20000, 10000


def list_nodes(count: int) -> list[str]:
    """Return the names of the Slurm job's nodes, this one first.

    Raises:
        InputError: this is no Slurm job with as many nodes.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        raise InputError(
            f"teacher.vllm.nodes: expected a Slurm job with {count} nodes (snakemake --profile slurm), found none"
        )
    # Snakemake's plugin unsets SLURM_JOB_NODELIST in the job.
    listed = ask("squeue", "--noheader", "--jobs", job, "--format", "%N")
    nodes = ask("scontrol", "show", "hostnames", listed.strip()).split()
    own = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if len(nodes) < count or own not in nodes:
        raise InputError(f"teacher.vllm.nodes: expected a Slurm job with {count} nodes, found {', '.join(nodes)}")
    return [own, *(node for node in nodes if node != own)][:count]


def ask(*command: str) -> str:
    """Return what a command of Slurm prints.

    Raises:
        InputError: it fails; says why.
    """
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise InputError(f"{' '.join(command)}: {found.stderr.strip()}")
    return found.stdout


def list_arguments(count: int, rank: int = 0) -> list[str]:
    """Return vLLM's options that connect the nodes; none for a single node."""
    if count == 1:
        return []
    address, port = list_nodes(count)[0], FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS
    group = ["--nnodes", str(count), "--node-rank", str(rank), "--master-addr", address, "--master-port", str(port)]
    return [*group, "--distributed-executor-backend", "mp", *(["--headless"] if rank else [])]


def list_other_nodes(command: Sequence[str], count: int, gpus: int) -> list[list[str]]:
    """Return the commands that start vLLM on the job's other nodes.

    Args:
        command: the command that serves, without the options that connect the nodes.
        count: number of nodes.
        gpus: GPUs of each node.
    """
    if count == 1:
        return []
    commands: list[list[str]] = []
    # A step asks for the GPUs of all nodes by default.
    named = "tres-per-job:99,tres-per-node:99,tres-per-task:99,tres-alloc:250"
    has_gpus = "gpu" in ask("squeue", "--noheader", "--jobs", os.environ["SLURM_JOB_ID"], f"--Format={named}")
    shared = [f"--gpus={gpus}"] if has_gpus else []
    for rank, node in enumerate(list_nodes(count)[1:], start=1):
        step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--kill-on-bad-exit=1"]
        commands.append([*step, *shared, *command, *list_arguments(count, rank)])
    return commands
