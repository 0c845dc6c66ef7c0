"""Where a model goes: which GPU, or all of them, and whether it fits."""

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import torch

from distill.common.errors import InputError
from distill.models.completions import decoder_and_head
from distill.models.memory import (
    format_bytes,
    free_memory,
    kv_bytes_per_token,
    skeleton_bytes,
    stored_quantization,
    stored_weights,
    total_memory,
)

logger = logging.getLogger(__name__)


def join_parts(model: Any) -> None:
    """Have decoder and head of a spread model give their outputs where their inputs are.

    accelerate does so for a model as a whole only, and here the two are called one by one.
    """
    places = set(getattr(model, "hf_device_map", {}).values())
    if len(places) < 2:
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    logger.info("the model lies on %s", ", ".join(sorted(map(str, places))))
    if places & {"cpu", "disk"}:
        logger.warning(
            "not all of the model fits the GPUs: what lies elsewhere is fetched for every token, which is slow"
        )
    for part in decoder_and_head(model):
        hook: Any = getattr(part, "_hf_hook", None)
        if hook is not None:
            hook.io_same_device = True
        else:
            skipped = model._skip_keys_device_placement
            add_hook_to_module(part, AlignDevicesHook(model.device, io_same_device=True, skip_keys=skipped))


SHOWN_TOKENS = 1024
WEIGHTS_SHARE = 0.9  # of what is free on a GPU; the rest is for keys, values and activations


def list_devices(device: torch.device) -> list[torch.device]:
    """Where a model may be spread: every GPU that is visible, or the CPU. A GPU that is named stands alone."""
    if device.type != "cuda" or device.index is not None:
        return [device]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def describe_fit(model: str, weights: int | None, numbers: str, token_bytes: int, free: dict[torch.device, int]) -> str:
    """What a model takes against what is free, in a line.

    Args:
        weights: bytes; None where they are not known.
        numbers: what the weights are kept in, e.g. `nf4`.
        token_bytes: of `kv_bytes_per_token`.
        free: bytes by device.
    """
    size = f"about {format_bytes(weights)} of weights" if weights is not None else "weights of unknown size"
    there = ", ".join(f"{format_bytes(size)} free on {device}" for device, size in free.items())
    return (
        f"{model}: {size} ({numbers}), {format_bytes(token_bytes)} of keys and values a token "
        f"({format_bytes(token_bytes * SHOWN_TOKENS)} for {SHOWN_TOKENS} tokens of prompt and answer), {there}"
    )


def advise(skeleton: Any, weights: int) -> str:
    """What would take less memory than `weights` bytes; what is quantized already cannot be so again."""
    choices = () if stored_quantization(skeleton.config) else ("int8", "nf4")
    sizes = {quantization: skeleton_bytes(skeleton, quantization) for quantization in choices}
    less = [
        f"`quantization: {name}` takes about {format_bytes(size)}" for name, size in sizes.items() if size < weights
    ]
    return "; ".join([*less, "a teacher may also be a server that holds the model (`engine: openai`)"])


def check_fit(model: str, weights: int, free: dict[torch.device, int], advice: str) -> None:
    """Warn where the weights take more than is free; that may still go well, since others may end meanwhile.

    Raises:
        InputError: they take more than there is at all.
    """
    total = sum(map(total_memory, free))
    names = ", ".join(map(str, free))
    if weights > total:
        raise InputError(
            f"{model}: expected weights that fit the memory of {names}, which is {format_bytes(total)}, "
            f"found about {format_bytes(weights)}; {advice}"
        )
    if weights > sum(free.values()):
        there = format_bytes(sum(free.values()))
        logger.warning("%s: only %s are free on %s, which may not do; %s", model, there, names, advice)


def place_model(
    model: str, skeleton: Any, device: torch.device, dtype: torch.dtype, quantization: str, is_alone: bool
) -> dict[str, Any]:
    """Where a model goes, as `device_map` and `max_memory` of `from_pretrained`; says what it takes in the log.

    One GPU where the weights leave a tenth of it free, else all of them together. What is too much for the free
    memory of several GPUs stays in the machine's (bitsandbytes' layers cannot, and transformers then says so).

    Args:
        is_alone: it is the process's only model, and may take any GPU that no other job has.

    Raises:
        InputError: the weights take more memory than there is.
    """
    if stored := stored_quantization(skeleton.config):
        weights, numbers = stored_weights(model), stored
    else:
        weights = skeleton_bytes(skeleton, quantization)
        numbers = str(dtype).removeprefix("torch.") if quantization == "none" else quantization
    places = list_devices(device)
    first = claim_gpu() if is_alone and len(places) > 1 else places[0]
    others = [place for place in places if place != first]
    free = {first: free_memory(first)}
    if (weights or 0) > WEIGHTS_SHARE * free[first]:
        # Not before: CUDA takes some hundred MiB of a GPU that is asked.
        free |= {place: free_memory(place) for place in others}
    logger.info(describe_fit(model, weights, numbers, kv_bytes_per_token(skeleton.config, dtype), free))
    if weights is not None:
        check_fit(model, weights, free, advise(skeleton, weights))
    if len(free) == 1:
        return {"device_map": {"": first}}
    share = WEIGHTS_SHARE if quantization == "none" else 1.0  # of quantized ones transformers takes a tenth off itself
    room: dict[int | str, int] = {place.index: int(share * size) for place, size in free.items()}
    return {"device_map": "auto", "max_memory": room | {"cpu": free_memory(torch.device("cpu"))}}


_held: list[IO[bytes]] = []  # for the life of the process; the kernel lets go of a lock however a process ends


def claim_gpu() -> torch.device:
    """The first visible GPU that no other job has claimed; the first of all, with a warning, where there is none.

    Locks are files beside each other in the machine's folder for temporary files, named by the GPU's own id, so that
    jobs that see the GPUs in another order agree. They hold between jobs of one user.
    """
    count = torch.cuda.device_count()
    for index in range(count):
        name = f"stillhouse-{os.getuid()}-{torch.cuda.get_device_properties(index).uuid}.lock"
        file = open(Path(tempfile.gettempdir()) / name, "ab")  # noqa: SIM115 - held open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        return torch.device("cuda", index)
    logger.warning("each of the %d GPUs has a job of its own; this one shares the first", count)
    return torch.device("cuda", 0)
