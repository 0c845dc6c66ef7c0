"""Write a model as one GGUF file with 8 bits per weight (Q8_0), for llama.cpp, Ollama and LM Studio.

Tensor names and layout are those of llama.cpp's convert_hf_to_gguf.py and come from the tables of its package `gguf`.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray
from safetensors import safe_open

from distill.common.errors import InputError
from distill.export.gguf_tokenizer import add_tokenizer
from distill.models.load import load_config, load_tokenizer

logger = logging.getLogger(__name__)

Types = gguf.GGMLQuantizationType
BLOCK = GGML_QUANT_SIZES[Types.Q8_0][0]  # number of weights that share a scale
NUMPY_TYPES = {Types.Q8_0: np.uint8, Types.F16: np.float16, Types.F32: np.float32}


class Layout(NamedTuple):
    """How GGUF stores an architecture of transformers.

    Attributes:
        architecture: member of `gguf.MODEL_ARCH`.
        has_paired_rotation: whether llama.cpp applies rotary embeddings to adjacent rows of queries and keys, instead
            of to the two halves of a head as transformers does.
    """

    architecture: Any
    has_paired_rotation: bool


LAYOUTS = {
    "Qwen2ForCausalLM": Layout(gguf.MODEL_ARCH.QWEN2, False),
    "LlamaForCausalLM": Layout(gguf.MODEL_ARCH.LLAMA, True),
}
# Settings that GGUF readers ignore, with the only value for which that is right.
FIXED_SETTINGS = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}


def find_layout(model: str, config: Any) -> Layout:
    """The layout for a model's configuration.

    Raises:
        InputError: the architecture or one of its settings is not supported; names it.
    """
    names = getattr(config, "architectures", None) or ["none"]
    if names[0] not in LAYOUTS:
        raise unsupported(model, f"expected the architecture {' or '.join(LAYOUTS)}, found {names[0]}")
    found = {name: getattr(config, name, expected) for name, expected in FIXED_SETTINGS.items()}
    found["rope_type"] = get_rope(config).get("rope_type", "default")
    for name, expected in (FIXED_SETTINGS | {"rope_type": "default"}).items():
        if found[name] != expected:
            raise unsupported(model, f"expected {name} {expected!r} in config.json, found {found[name]!r}")
    width, heads = get_head_width(config), config.num_attention_heads
    if width * heads != config.hidden_size:
        text = f"expected hidden_size to be heads · width = {heads} · {width}, found {config.hidden_size}"
        raise unsupported(model, f"{text} in config.json")
    return LAYOUTS[names[0]]


def unsupported(model: str, problem: str) -> InputError:
    """The error for a model that this module cannot write."""
    return InputError(f"{model}: variant gguf: {problem}; remove gguf from export.variants")


def get_rope(config: Any) -> dict[str, Any]:
    """Parameters of the rotary embeddings."""
    return getattr(config, "rope_parameters", None) or {}


def get_head_width(config: Any) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def pair_rotated_rows(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows for llama.cpp: rows i and i + width/2 of each head become adjacent.

    Args:
        weight: shape (heads · width, …).
        heads: number of heads.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def choose_type(shape: tuple[int, ...]) -> Any:
    """Data type of a tensor: Q8_0, but float32 for vectors and float16 if rows are not whole blocks."""
    if len(shape) == 1:
        return Types.F32
    return Types.Q8_0 if shape[-1] % BLOCK == 0 else Types.F16


def add_settings(writer: Any, config: Any) -> None:
    """Add the model's sizes to the metadata."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(get_rope(config).get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(get_head_width(config))


def map_tensors(model: str, names: list[str], layout: Layout, config: Any) -> dict[str, str]:
    """Map tensor names of transformers to those of GGUF; a tied output head is left out.

    Raises:
        InputError: a tensor does not belong to the architecture.
    """
    tensor_map = gguf.get_tensor_name_map(layout.architecture, config.num_hidden_layers)
    mapped = {}
    for name in names:
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        target = tensor_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise InputError(f"{model}: variant gguf: expected tensors of {config.architectures[0]}, found {name}")
        mapped[name] = target
    return mapped


def write_gguf(model: str, path: Path) -> None:
    """Write weights, settings and tokenizer of a model folder as one GGUF file, with one tensor in memory at a time.

    Args:
        model: local folder with model.safetensors.
        path: file to write.

    Raises:
        InputError: the architecture or the tokenizer is not supported.
    """
    config, tokenizer = load_config(model), load_tokenizer(model)
    layout = find_layout(model, config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[layout.architecture])
    add_settings(writer, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    paired_heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    with safe_open(Path(model) / "model.safetensors", framework="pt") as weights:
        mapped = map_tensors(model, sorted(weights.keys()), layout, config)
        for name, target in mapped.items():
            add_tensor_info(writer, target, tuple(weights.get_slice(name).get_shape()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in convert_tensors(weights.get_tensor, mapped, paired_heads if layout.has_paired_rotation else {}):
            writer.write_tensor_data(data)
    writer.close()
    logger.info("%s: %d tensors of %s, %d bytes", path, len(mapped), config.architectures[0], path.stat().st_size)


def add_tensor_info(writer: Any, name: str, shape: tuple[int, ...]) -> None:
    """Add a tensor's name, shape and data type to the header; its data follow later."""
    kind = choose_type(shape)
    stored_shape = gguf.quant_shape_to_byte_shape(shape, kind) if kind == Types.Q8_0 else shape
    dtype = np.dtype(NUMPY_TYPES[kind])
    writer.add_tensor_info(name, stored_shape, dtype, int(np.prod(stored_shape)) * dtype.itemsize, raw_dtype=kind)


def convert_tensors(
    read: Callable[[str], torch.Tensor], mapped: dict[str, str], paired_heads: dict[str, int]
) -> Iterator[NDArray[Any]]:
    """Yield the data of each tensor as GGUF stores them.

    Args:
        read: reads a tensor by its name in transformers.
        mapped: names from `map_tensors`.
        paired_heads: part of a GGUF name to the number of heads, for weights whose rows are reordered.
    """
    for name, target in mapped.items():
        weight = read(name).float().numpy()
        for part, heads in paired_heads.items():
            if part in target:
                weight = pair_rotated_rows(weight, heads)
        yield gguf.quants.quantize(np.ascontiguousarray(weight), choose_type(weight.shape))
