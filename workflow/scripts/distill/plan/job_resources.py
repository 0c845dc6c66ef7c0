"""GPUs, threads and nodes of jobs that load models."""

from typing import Any

from distill.common.names import TEACHER
from distill.plan.experiment import Config, get_engine


def get_gpus(config: Config) -> int:
    """Return the GPUs of a job that loads a model."""
    return 0 if config["device"] == "cpu" else 1


def get_threads(config: Config) -> int:
    """Return the threads of a job that loads a model: enough to feed a GPU. The demo's tiny models need only one."""
    return 1 if "demo" in config else 4


def get_answering_gpus(config: Config, model: str = TEACHER) -> int:
    """Return the GPUs of a job that generates a model's answers; none if the model runs on a server."""
    return get_gpus(config) if get_engine(config, model).needs_gpu else 0


def get_answering_threads(config: Config, model: str = TEACHER) -> int:
    """Return the threads of a job that generates a model's answers; one if the model runs on a server."""
    return get_threads(config) if get_engine(config, model).needs_gpu else 1


def get_training_resources(config: Config, student: str) -> dict[str, Any]:
    """Return the resources of a student's training. The Slurm executor reads all but `gpu`; None leaves one unset.

    `gpu` counts the GPUs of all nodes. `tasks_per_gpu` is 0 on several nodes, so that the executor takes `tasks` as one
    task per node and not per GPU. `mpi` keeps the executor from starting the command with srun, since run_on_nodes.py
    does. With several GPUs on one node, `nodes` is 1, so that Slurm does not spread them over nodes.
    """
    train = config["students"][student]["train"]
    nodes, gpus = train["nodes"], train["gpus_per_node"]
    has_nodes = nodes > 1
    return {
        "gpu": get_gpus(config) * nodes * gpus,
        "nodes": nodes if has_nodes or gpus > 1 else None,
        "tasks": nodes if has_nodes else None,
        "tasks_per_gpu": 0 if has_nodes else None,
        "mpi": "srun" if has_nodes else None,
    }
