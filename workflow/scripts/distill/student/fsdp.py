"""Sharding of weights, gradients and optimizer states over ranks with FSDP2 (`fully_shard` of torch).

Weights stay in float32 and autocast computes in 16 bits, as with DDP, so both strategies have the same numerics. With
precision bf16, the layers' weights are gathered in bfloat16, as autocast would round them: half the traffic and memory.
Only the weights of norms, which autocast leaves in float32, and their gradients are rounded more than with DDP.
"""

import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from distill.common.errors import InputError
from distill.models.completions import decoder_and_head
from distill.student.decoder_layers import find_layer_lists

logger = logging.getLogger(__name__)

logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs every file of every checkpoint

TIMEOUT = timedelta(minutes=30)  # the longest that a rank waits for another one, which may be writing a large student
SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def init_distributed(device: torch.device) -> None:
    """Initialise torch.distributed, also for a single process that no launcher has started.

    On GPUs the group knows the device of its rank, which NCCL would otherwise guess in barriers.
    """
    for name, value in SINGLE_PROCESS.items():
        os.environ.setdefault(name, value)
    settings: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        # gloo beside nccl: gradients that are offloaded to the CPU are reduced there.
        settings = {"backend": "cpu:gloo,cuda:nccl", "device_id": own}
    if not dist.is_initialized():
        dist.init_process_group(timeout=TIMEOUT, **settings)


def shard(modules: Iterable[Any], device: torch.device, offload: bool, **settings: Any) -> None:
    """Shard the weights of modules over all ranks.

    Args:
        modules: modules that are gathered one at a time, inner ones first; the last holds all remaining weights.
        device: where they compute; without `offload` the shards are moved there.
        offload: whether the shards stay in CPU memory.
        settings: further arguments of `fully_shard`.
    """
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for module in modules:
        fully_shard(module, mesh=mesh, offload_policy=policy, **settings)


def shard_student(model: Any, device: torch.device, offload: bool, precision: str) -> None:
    """Shard a student layer by layer; embeddings, last norm and head stay gathered from forward to backward.

    Args:
        model: the student.
        device, offload: see `shard`.
        precision: `train.precision`. With `bf16`, layers are gathered in bfloat16 and their gradients are reduced in
            float32. Inputs of layers are not converted: the residual stream stays in float32, as with DDP.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shard(list_layers(model), device, offload, mp_policy=policy)
    shard([model], device, offload)
    logger.info("the student is sharded over %d ranks", dist.get_world_size())


def shard_teacher(model: Any, device: torch.device, offload: bool) -> None:
    """Shard a frozen teacher's decoder layer by layer; the head, used as a whole in every step, is replicated."""
    decoder, head = decoder_and_head(model)
    head.to(device)
    layers = list_layers(model)
    shard([*layers, decoder], device, offload, reshard_after_forward=True, ignored_params=set(head.parameters()))
    logger.info("the teacher is sharded over %d ranks", dist.get_world_size())


def list_layers(model: Any) -> list[torch.nn.Module]:
    """The layers of a model's decoder.

    Raises:
        InputError: they are not in a list of the decoder's own.
    """
    layers = [layer for found in find_layer_lists(model).values() for layer in found]
    if not layers:
        raise InputError(
            f"{model.config.name_or_path}: strategy fsdp: expected a decoder with a list of its layers, found none in "
            f"{type(decoder_and_head(model)[0]).__name__}; set train.strategy to ddp"
        )
    return layers


def fsdp_plugin_arguments(offload: bool) -> dict[str, Any]:
    """Arguments of accelerate's FSDP plugin, which saves, loads and clips the weights sharded by `shard_student`.

    Checkpoints are sharded: no rank has to hold all optimizer states, and any number of ranks can read them.
    """
    return {
        "fsdp_version": 2,
        "auto_wrap_policy": "NO_WRAP",
        "cpu_offload": offload,
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
    }


def enable_accelerate_fsdp() -> None:
    """Make accelerate use FSDP also on a CPU and in a single process.

    accelerate 1.15 (`AcceleratorState`) does so only for several GPUs, although the rest of its code needs no GPU.
    """
    if PartialState().distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
