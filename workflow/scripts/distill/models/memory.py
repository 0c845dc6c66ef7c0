"""Memory: how much a model needs, how much is free, and how much this process has used."""

import copy
import ctypes
import json
import logging
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from distill.common.errors import InputError
from distill.models import host_memory

logger = logging.getLogger(__name__)

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
NF4_BLOCK, ABSMAX_BLOCK = 64, 256  # weights per scale, scales per second-level scale

# Bytes of an integrated GPU's memory that stay free for the system and other programs.
INTEGRATED_RESERVE = 6 * 2**30

_limited: set[torch.device] = set()  # integrated GPUs whose limit is set

# ---- What a model needs ----


def build_skeleton(config: Any, dtype: torch.dtype) -> Any:
    """Build a configuration's model on the meta device, without weights; this takes about a second even for 72B.

    Raises:
        InputError: the configuration does not describe a causal language model that transformers supports.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        name = getattr(config, "_name_or_path", "")
        raise InputError(
            f"{name}: config.json describes no causal language model that transformers supports: {error}"
        ) from error


def estimate_weights(config: Any, dtype: torch.dtype, quantization: str) -> int:
    """Estimate the bytes of a loaded model's weights and buffers, without an adapter.

    Args:
        config: the model's configuration.
        dtype: dtype of weights that are not quantized.
        quantization: `none`, `int8` or `nf4`.
    """
    return skeleton_bytes(build_skeleton(config, dtype), quantization)


def skeleton_bytes(skeleton: Any, quantization: str) -> int:
    """Estimate as in `estimate_weights`, for a model built by `build_skeleton`."""
    quantized = set() if quantization == "none" else {f"{name}.weight" for name in quantized_layers(skeleton)}
    total = 0
    for name, tensor in [*skeleton.named_parameters(), *skeleton.named_buffers()]:
        if name in skeleton.all_tied_weights_keys:
            continue
        total += quantized_bytes(tensor, quantization) if name in quantized else tensor.nbytes
    return total


def quantized_layers(skeleton: Any) -> dict[str, Any]:
    """Find the layers that transformers quantizes with bitsandbytes: linear layers except the head and tied ones."""
    skipped = HfQuantizer.get_modules_to_not_convert(skeleton, None, skeleton._keep_in_fp32_modules)
    linear = {name: module for name, module in skeleton.named_modules() if type(module) in (torch.nn.Linear, Conv1D)}
    return {name: module for name, module in linear.items() if should_convert_module(name, skipped)}


def quantized_bytes(weight: torch.Tensor, quantization: str) -> int:
    """Compute the bytes of a quantized (out, in) weight and its scales, as stored by bitsandbytes 0.50.

    int8: one byte per weight and one float32 scale per row (LLM.int8(), arXiv 2208.07339, section 2).

    nf4: half a byte per weight. Double quantization adds 0.127 bits per weight: one byte per block of 64 weights for
    the largest absolute value, and one float32 per 256 blocks (QLoRA, arXiv 2305.14314, section 3). Each tensor also
    has float32 tables of 16 and 256 values and an offset (`bitsandbytes.functional.quantize_4bit`).
    """
    count = weight.numel()
    if quantization == "int8":
        return count + 4 * weight.shape[0]
    blocks = -(-count // NF4_BLOCK)
    return -(-count // 2) + blocks + 4 * -(-blocks // ABSMAX_BLOCK) + 4 * (16 + 256 + 1)


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Compute the bytes that one token adds to the KV cache: the sum of `kv_bytes_by_layer`."""
    return sum(kv_bytes_by_layer(config, dtype))


def kv_bytes_by_layer(config: Any, dtype: torch.dtype) -> list[int]:
    """Compute the bytes that one token adds to the KV cache of each layer, with full attention in all of them.

    This is 2 · key/value heads · head width · bytes per number; layers may differ (Gemma 4). Models with sliding
    windows, latent attention or state-space layers need less.
    """
    sizes = []
    for layer in config.get_text_config().per_layer_config:
        if not hasattr(layer, "num_attention_heads"):
            sizes.append(0)  # a layer without attention
            continue
        heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
        width = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        sizes.append(2 * heads * width * dtype.itemsize)
    return sizes


def activation_bytes_per_token(config: Any, dtype: torch.dtype, is_int8: bool) -> int:
    """Estimate the bytes of activations per token that a decoder layer holds at its peak without gradients.

    The peak is in the feed-forward part: gate, up and their product, beside residual, normalised states, output and
    position embeddings. LLM.int8() converts a product from int32 (`bitsandbytes.functional.int8_mm_dequant`), and finds
    outliers with a copy of its input.

    Args:
        config: the model's configuration.
        dtype: dtype of the activations.
        is_int8: whether the weights are quantized by LLM.int8().
    """
    text = config.get_text_config()
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, (list, tuple)) else inner
    experts = getattr(text, "num_experts_per_tok", None) or 0
    inner = max(inner, experts * (getattr(text, "moe_intermediate_size", None) or inner))
    converted = 6 * inner if is_int8 else 0
    return dtype.itemsize * (3 * inner + 5 * hidden) + converted


def stored_quantization(config: Any) -> str | None:
    """Return the quantization method of a checkpoint's weights, such as `gptq`; None if they are not quantized."""
    stored = getattr(config, "quantization_config", None)
    return None if stored is None else str(stored.get("quant_method", "unknown method"))


def is_packed(config: Any) -> bool:
    """Whether the weights of a checkpoint are packed by compressed-tensors; they are unpacked when they are loaded."""
    stored = getattr(config, "quantization_config", None) or {}
    return stored.get("quant_method") == "compressed-tensors" and str(stored.get("format")).endswith("pack-quantized")


def stored_weights(model: str) -> int | None:
    """Return the bytes of a sharded checkpoint according to its index; None for a checkpoint in a single file."""
    try:
        path = cached_file(model, SAFE_WEIGHTS_INDEX_NAME)
    except OSError:
        return None
    return json.loads(Path(str(path)).read_text()).get("metadata", {}).get("total_size")


# ---- What is free and what is used ----


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated on a device now, including memory that torch has reserved but not used.

    On an integrated GPU (GB10 of the DGX Spark, Jetson), CUDA counts the page cache as used, although the kernel frees
    it on demand. The result is then the larger of CUDA's figure and the machine's available memory, without
    INTEGRATED_RESERVE. This case has not been tested on such a GPU.
    """
    if device.type != "cuda":
        return host_memory.available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    if not is_integrated(device):
        return free
    # A control group's limit is below the machine's memory, and CUDA knows of none.
    available = host_memory.available_memory()
    free = min(max(free, available), available + unused) if host_memory.read_limits() else max(free, available)
    return max(0, free - INTEGRATED_RESERVE)


def total_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes, of an integrated GPU without INTEGRATED_RESERVE."""
    if device.type != "cuda":
        return host_memory.total_memory()
    total = torch.cuda.mem_get_info(device)[1]
    if not is_integrated(device):
        return total
    machine = host_memory.total_memory()
    return (min(machine, total) if host_memory.read_limits() else max(machine, total)) - INTEGRATED_RESERVE


def is_integrated(device: torch.device) -> bool:
    """Whether a GPU shares the machine's memory."""
    return bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))


def limit_integrated(device: torch.device) -> None:
    """Keep this process's allocations on an integrated GPU below its free memory; do nothing on other GPUs.

    Beyond the machine's memory an allocation does not fail there, but hangs the machine. torch raises an error before
    that, as on other GPUs.
    """
    if device in _limited or not is_integrated(device):
        return
    _limited.add(device)
    free, total = free_memory(device), torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, free / total), device)
    logger.info("integrated GPU: this process may allocate %s", format_bytes(min(free, total)))


def memory_mb(device: torch.device) -> int:
    """Return the peak of this process's tensors in MiB: the sum over all GPUs, or on a CPU its resident memory."""
    if device.type == "cuda":
        return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def reserved_mb(device: torch.device) -> int:
    """Return the peak of the memory that this process has taken from its GPUs in MiB, with what torch keeps unused.

    It is what must be free for the job. On a CPU it is the value of `memory_mb`.
    """
    if device.type == "cuda":
        return sum(map(torch.cuda.max_memory_reserved, range(torch.cuda.device_count()))) // 2**20
    return memory_mb(device)


def keep_freed_memory() -> None:
    """Configure glibc to reuse freed memory instead of returning it to the kernel; do nothing without glibc.

    On a CPU, each step allocates and frees thousands of tensors of a few MiB. The kernel clears every page before it is
    used again, which took a quarter of the prefill time. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)


def format_bytes(size: int) -> str:
    """Format bytes as `1.5 GiB`, in the largest unit that gives at least 1."""
    unit, name = next(((unit, name) for unit, name in UNITS if size >= unit), UNITS[-1])
    return f"{size / unit:.1f} {name}"
