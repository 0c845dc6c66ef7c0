"""Weights, gradients and optimizer states shared out among processes (FSDP2, `fully_shard` of torch).

Weights stay in float32, as with copies of the model in all processes, and autocast computes in 16 bits: both ways to
train have the same numbers.
"""

import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from distill.models.completions import decoder_and_head

logger = logging.getLogger(__name__)


logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file of every checkpoint

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def join_processes(device: torch.device) -> None:
    """Have the processes of a training know each other before anything is shared out; one process is a group, too."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # gloo beside nccl: what is offloaded to the CPU is added up there.
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")


def shard(parts: Iterable[Any], device: torch.device, offload: bool, **settings: Any) -> None:
    """Share out the weights of modules, each of which is put together when it is its turn; the last holds the others.

    Args:
        parts: modules, the inner ones first.
        device: where they compute; weights come there, or with `offload` stay in the CPU's memory.
        settings: of `fully_shard`.
    """
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for part in parts:
        fully_shard(part, mesh=mesh, offload_policy=policy, **settings)


def shard_student(model: Any, device: torch.device, offload: bool) -> None:
    """Share out a student, layer by layer; the rest (embeddings, last norm, head) is whole from forward to backward."""
    decoder: Any = decoder_and_head(model)[0]
    shard([*decoder.layers, model], device, offload)
    logger.info("the student is shared out among %d processes", dist.get_world_size())


def shard_teacher(model: Any, device: torch.device, offload: bool) -> None:
    """Share out a frozen teacher's decoder, layer by layer; its head, of which a step uses all, is whole everywhere."""
    decoder: Any
    decoder, head = decoder_and_head(model)
    head.to(device)
    shard(
        [*decoder.layers, decoder], device, offload, reshard_after_forward=True, ignored_params=set(head.parameters())
    )
    logger.info("the teacher is shared out among %d processes", dist.get_world_size())


def trainer_plugin(offload: bool) -> dict[str, Any]:
    """Arguments of accelerate's FSDP plugin, which saves, loads and clips what `shard_student` has shared out.

    Checkpoints are of shards: no process has to hold all optimizer states, and any number of processes reads them.
    """
    return {
        "fsdp_version": 2,
        "auto_wrap_policy": "NO_WRAP",
        "cpu_offload": offload,
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
    }


def let_accelerate_shard() -> None:
    """Have accelerate take its way of FSDP on a CPU and in a single process, too.

    It looks for several GPUs before it does (1.15, `AcceleratorState`), though nothing of what follows needs them.
    """
    if PartialState().distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
