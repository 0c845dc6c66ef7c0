"""How much memory a model takes, how much there is, and where the model goes."""

import copy
import ctypes
import json
import logging
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    cached_file,
)

from distill.common.errors import InputError


def memory_mb(device: torch.device) -> int:
    """The most memory this process has held so far, in MiB: of all GPUs, or resident where it runs on the CPU."""
    if device.type == "cuda":
        return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


logger = logging.getLogger(__name__)

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


NF4_BLOCK, ABSMAX_BLOCK = 64, 256


def build_skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The model of a configuration without its weights: on the meta device, in a second even for 72B.

    Raises:
        InputError: transformers knows no causal language model for it.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        name = getattr(config, "_name_or_path", "")
        raise InputError(f"{name}: its config.json describes no causal language model: {error}") from error


def estimate_weights(config: Any, dtype: torch.dtype, quantization: str) -> int:
    """Bytes of a model's weights and buffers once it is loaded, before any adapter.

    Args:
        dtype: of all that is not quantized.
        quantization: `none`, `int8` or `nf4`.
    """
    return skeleton_bytes(build_skeleton(config, dtype), quantization)


def skeleton_bytes(skeleton: Any, quantization: str) -> int:
    """`estimate_weights` of a skeleton."""
    quantized = set() if quantization == "none" else {f"{name}.weight" for name in quantized_layers(skeleton)}
    total = 0
    for name, tensor in [*skeleton.named_parameters(), *skeleton.named_buffers()]:
        if name in skeleton.all_tied_weights_keys:
            continue
        total += quantized_bytes(tensor, quantization) if name in quantized else tensor.nbytes
    return total


def quantized_layers(skeleton: Any) -> dict[str, Any]:
    """The layers that bitsandbytes replaces, by transformers' own rules: linear ones but for the head and tied ones."""
    skipped = HfQuantizer.get_modules_to_not_convert(skeleton, None, skeleton._keep_in_fp32_modules)
    linear = {name: module for name, module in skeleton.named_modules() if type(module) in (torch.nn.Linear, Conv1D)}
    return {name: module for name, module in linear.items() if should_convert_module(name, skipped)}


def quantized_bytes(weight: torch.Tensor, quantization: str) -> int:
    """Bytes of a quantized (out, in) weight with its scales, as bitsandbytes 0.50 keeps it.

    int8: a byte a weight and a float32 a row (LLM.int8(), arXiv 2208.07339, section 2). nf4: half a byte a weight; a
    byte for the largest absolute value of each 64 weights and a float32 for each 256 of these (double quantization,
    arXiv 2305.14314, section 3: 0.127 bits a weight); and float32 tables of 16 and 256 values and their offset
    (`bitsandbytes.functional.quantize_4bit`).
    """
    count = weight.numel()
    if quantization == "int8":
        return count + 4 * weight.shape[0]
    blocks = -(-count // NF4_BLOCK)
    return -(-count // 2) + blocks + 4 * -(-blocks // ABSMAX_BLOCK) + 4 * (16 + 256 + 1)


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values that a token adds to the cache of a model with full attention in every layer.

    Layers, times 2, times key/value heads, times their width, times bytes a number. Sliding windows, latent attention
    and state-space layers keep less.
    """
    text = config.get_text_config()
    if not hasattr(text, "num_attention_heads"):
        return 0  # a model without attention
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers * 2 * heads * width * dtype.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device now, with what torch holds there unused.

    On a GPU that shares the machine's memory (GB10 of the DGX Spark, Jetson) CUDA counts the page cache as taken,
    though it is given up on demand: the larger of its figure and the machine's available memory (untried on one).
    """
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return max(free, psutil.virtual_memory().available) if is_integrated(device) else free


def total_memory(device: torch.device) -> int:
    """Bytes of all the memory a device has, taken or not."""
    if device.type != "cuda":
        return psutil.virtual_memory().total
    total = torch.cuda.mem_get_info(device)[1]
    return max(total, psutil.virtual_memory().total) if is_integrated(device) else total


def is_integrated(device: torch.device) -> bool:
    """Whether a GPU's memory is the machine's."""
    return bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))


def stored_quantization(config: Any) -> str | None:
    """How the weights of a checkpoint are quantized already, e.g. `gptq`; None where they are not."""
    stored = getattr(config, "quantization_config", None)
    return None if stored is None else str(stored.get("quant_method", "of a kind that is not named"))


def stored_weights(model: str) -> int | None:
    """Bytes of a checkpoint in several files, by its index; None where there is none: it is one file then."""
    try:
        path = cached_file(model, SAFE_WEIGHTS_INDEX_NAME)
    except OSError:
        return None
    return json.loads(Path(str(path)).read_text()).get("metadata", {}).get("total_size")


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, instead of giving it back and taking it anew.

    A step on a CPU makes and frees tensors of some MiB by the thousand; the kernel has to clear each page that it gives
    out again, which took a quarter of the time of reading prompts. Without glibc nothing happens. See mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)


def format_bytes(size: int) -> str:
    """Bytes as `1.5 GiB`, in the largest unit of which there is one."""
    unit, name = next(((unit, name) for unit, name in UNITS if size >= unit), UNITS[-1])
    return f"{size / unit:.1f} {name}"
