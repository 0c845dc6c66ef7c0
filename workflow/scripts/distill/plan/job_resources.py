"""GPUs, threads and nodes of jobs that load models."""

from typing import Any

from distill.common.names import TEACHER
from distill.generation.engine import count_gpus
from distill.plan.experiment import Config, get_engine, is_shared


def get_gpus(config: Config) -> int:
    """Return the GPUs of a job that loads a model."""
    return 0 if config["device"] == "cpu" else 1


def get_threads(config: Config) -> int:
    """Return the threads of a job that loads a model: enough to feed a GPU. The demo's tiny models need only one."""
    return 1 if "demo" in config else 4


def get_answering_gpus(config: Config, model: str = TEACHER) -> int:
    """Return the GPUs of a job that generates a model's answers, on all nodes; none if the model runs on a server."""
    if is_elsewhere(config, model):
        return 0
    return get_serving_gpus(config) if get_engine(config, model).starts_vllm else get_gpus(config)


def is_elsewhere(config: Config, model: str) -> bool:
    """Whether an evaluated model runs on a server that other jobs use as well."""
    engine = get_engine(config, model)
    return not engine.needs_gpu or (engine.starts_vllm and is_shared(config))


def get_serving_gpus(config: Config) -> int:
    """Return the GPUs of a vLLM server, on all nodes."""
    return get_gpus(config) * count_gpus(config["teacher"]["vllm"]["arguments"], nodes=1)


def spans_nodes(config: Config) -> bool:
    """Whether the vLLM server of a teacher, or of a category's own, spans several nodes."""
    return any(teacher["vllm"]["nodes"] > 1 for teacher in (config["teacher"], *config["teachers"].values()))


def get_serving_nodes(config: Config, model: str = TEACHER) -> dict[str, Any]:
    """Return the resources of a job whose vLLM server spans several nodes; see `get_training_resources`."""
    nodes = config["teacher"]["vllm"]["nodes"] if get_engine(config, model).starts_vllm else 1
    return list_node_resources(nodes)


def list_node_resources(nodes: int) -> dict[str, Any]:
    """Return what the Slurm executor reads of a job on several nodes; None leaves a resource unset."""
    has_nodes = nodes > 1
    return {
        "nodes": nodes if has_nodes else None,
        "tasks": nodes if has_nodes else None,
        "tasks_per_gpu": 0 if has_nodes else None,
        "mpi": "srun" if has_nodes else None,
    }


def get_answering_threads(config: Config, model: str = TEACHER) -> int:
    """Return the threads of a job that generates a model's answers; one if the model runs on a server."""
    return 1 if is_elsewhere(config, model) else get_threads(config)


def get_training_resources(config: Config, student: str) -> dict[str, Any]:
    """Return the resources of a student's training. The Slurm executor reads all but `gpu`; None leaves one unset.

    `gpu` counts the GPUs of all nodes. `tasks_per_gpu` is 0 on several nodes, so that the executor takes `tasks` as one
    task per node and not per GPU. `mpi` keeps the executor from starting the command with srun, since run_on_nodes.py
    does. With several GPUs on one node, `nodes` is 1, so that Slurm does not spread them over nodes.
    """
    train = config["students"][student]["train"]
    nodes, gpus = train["nodes"], train["gpus_per_node"]
    resources = list_node_resources(nodes) | {"gpu": get_gpus(config) * nodes * gpus}
    return resources | ({"nodes": 1} if nodes == 1 and gpus > 1 else {})
