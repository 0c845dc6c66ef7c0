"""Placement: on which GPU or GPUs a model is loaded, and whether it fits."""

import logging
from typing import Any

import torch

from distill.common.errors import InputError
from distill.models.completions import decoder_and_head
from distill.models.memory import (
    format_bytes,
    free_memory,
    is_packed,
    kv_bytes_per_token,
    skeleton_bytes,
    stored_quantization,
    stored_weights,
    total_memory,
)

logger = logging.getLogger(__name__)

SHOWN_TOKENS = 1024  # number of tokens in the log line about the KV cache
WEIGHTS_SHARE = 0.9  # share of a GPU's free memory for weights; the rest is for KV cache and activations


def list_devices(device: torch.device) -> list[torch.device]:
    """List the devices a model may be spread over: the CPU, all visible GPUs, or a single GPU given with its index."""
    if device.type != "cuda" or device.index is not None:
        return [device]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def describe_fit(model: str, weights: int | None, dtype: str, token_bytes: int, free: dict[torch.device, int]) -> str:
    """Describe in one line what a model needs and what is free.

    Args:
        model: the model's name.
        weights: bytes of the weights; None if unknown.
        dtype: how the weights are stored, such as `bfloat16` or `nf4`.
        token_bytes: bytes from `kv_bytes_per_token`.
        free: free bytes by device.
    """
    size = f"about {format_bytes(weights)} of weights" if weights is not None else "weights of unknown size"
    available = ", ".join(f"{format_bytes(size)} free on {device}" for device, size in free.items())
    return (
        f"{model}: {size} ({dtype}), {format_bytes(token_bytes)} of KV cache per token "
        f"({format_bytes(token_bytes * SHOWN_TOKENS)} for {SHOWN_TOKENS} tokens of prompt and answer), {available}"
    )


def advise(skeleton: Any, weights: int) -> str:
    """Suggest settings that need less memory than `weights` bytes; stored quantized weights cannot be requantized."""
    choices = () if stored_quantization(skeleton.config) else ("int8", "nf4")
    sizes = {quantization: skeleton_bytes(skeleton, quantization) for quantization in choices}
    smaller = [
        f"`quantization: {name}` needs about {format_bytes(size)}" for name, size in sizes.items() if size < weights
    ]
    return "; ".join([*smaller, "a teacher can also run on a server (`engine: openai`)"])


def check_fit(model: str, weights: int, free: dict[torch.device, int], advice: str) -> None:
    """Check that the weights fit; warn if they only exceed the free memory, since other jobs may free some in time.

    Raises:
        InputError: the weights exceed the total memory.
    """
    total = sum(map(total_memory, free))
    names = ", ".join(map(str, free))
    if weights > total:
        raise InputError(
            f"{model}: expected weights that fit the memory of {names}, which is {format_bytes(total)}, "
            f"found about {format_bytes(weights)}; {advice}"
        )
    if weights > sum(free.values()):
        available = format_bytes(sum(free.values()))
        logger.warning("%s: only %s is free on %s, which may be too little; %s", model, available, names, advice)


def place_model(
    model: str, skeleton: Any, device: torch.device, dtype: torch.dtype, quantization: str
) -> dict[str, Any]:
    """Choose the devices for a model and log what it needs.

    The model is loaded on the first GPU, which this process has claimed, if the weights leave a tenth of its free
    memory, else it is spread over all of them. What exceeds the free memory of several GPUs stays on the CPU;
    transformers rejects that for bitsandbytes layers.

    Args:
        model: hub id or local folder.
        skeleton: the model from `build_skeleton`.
        device: the CPU, all GPUs (`cuda`), or one GPU with its index.
        dtype: dtype of weights that are not quantized.
        quantization: `none`, `int8` or `nf4`.

    Returns:
        `device_map` and, for several GPUs, `max_memory` of `from_pretrained`.

    Raises:
        InputError: the weights exceed the total memory.
    """
    if (stored := stored_quantization(skeleton.config)) and not is_packed(skeleton.config):
        weights, kind = stored_weights(model), stored
    else:
        weights = skeleton_bytes(skeleton, quantization)
        kind = str(dtype).removeprefix("torch.") if quantization == "none" else quantization
    devices = list_devices(device)
    first = devices[0]
    free = {first: free_memory(first)}
    if (weights or 0) > WEIGHTS_SHARE * free[first]:
        # Only now, because querying a GPU's memory allocates several hundred MiB on it.
        free |= {other: free_memory(other) for other in devices if other != first}
    logger.info(describe_fit(model, weights, kind, kv_bytes_per_token(skeleton.config, dtype), free))
    if weights is not None:
        check_fit(model, weights, free, advise(skeleton, weights))
    if len(free) == 1:
        return {"device_map": {"": first}}
    share = WEIGHTS_SHARE if quantization == "none" else 1.0  # for quantized models transformers subtracts 10 % itself
    limits: dict[int | str, int] = {gpu.index: int(share * size) for gpu, size in free.items()}
    return {"device_map": "auto", "max_memory": limits | {"cpu": free_memory(torch.device("cpu"))}}


def layer_devices(model: Any) -> list[torch.device]:
    """Return the device on which each decoder layer computes, and therefore keeps its keys and values.

    accelerate moves the weights of a layer on the CPU to a GPU whenever it runs.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [part for part in decoder_and_head(model)[0].modules() if isinstance(part, torch.nn.ModuleList)]
    layers = next((part for part in lists if len(part) == count), [torch.nn.Identity()] * count)
    return [layer_device(layer, model.device) for layer in layers]


def layer_device(layer: torch.nn.Module, default: torch.device) -> torch.device:
    """Return the device on which a module computes."""
    hook: Any = getattr(layer, "_hf_hook", None)
    if (found := getattr(hook, "execution_device", None)) is not None:
        return torch.device("cuda", found) if isinstance(found, int) else torch.device(found)
    return next((weight.device for weight in layer.parameters()), default)


def align_devices(model: Any) -> None:
    """Make decoder and head of a model on several devices return their outputs on the device of their inputs.

    accelerate does this only for the whole model, and decoder and head are called separately here.
    """
    devices = set(getattr(model, "hf_device_map", {}).values())
    if len(devices) < 2:
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    logger.info("the model is spread over %s", ", ".join(sorted(map(str, devices))))
    if devices & {"cpu", "disk"}:
        logger.warning("the GPUs are too small for the model: parts of it are loaded for every token, which is slow")
    for part in decoder_and_head(model):
        hook: Any = getattr(part, "_hf_hook", None)
        if hook is not None:
            hook.io_same_device = True
        else:
            skipped = model._skip_keys_device_placement
            add_hook_to_module(part, AlignDevicesHook(model.device, io_same_device=True, skip_keys=skipped))
