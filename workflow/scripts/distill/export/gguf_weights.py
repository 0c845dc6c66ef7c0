"""A model as one GGUF file, in 8 bits a weight (Q8_0), as llama.cpp, Ollama and LM Studio read it.

Names and layout are those of llama.cpp's own convert_hf_to_gguf.py, by the maps of its package `gguf`.
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
BLOCK = GGML_QUANT_SIZES[Types.Q8_0][0]  # weights of a row that share a scale


class Layout(NamedTuple):
    """How GGUF knows an architecture of transformers."""

    architecture: Any
    has_paired_rotation: bool  # llama.cpp rotates neighbouring rows of queries and keys, transformers halves of a head


LAYOUTS = {
    "Qwen2ForCausalLM": Layout(gguf.MODEL_ARCH.QWEN2, False),
    "LlamaForCausalLM": Layout(gguf.MODEL_ARCH.LLAMA, True),
}


# What GGUF's readers would not see, by its value where there is nothing of it.
ABSENT = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}


def find_layout(model: str, config: Any) -> Layout:
    """The layout of a configuration.

    Raises:
        InputError: an architecture, or a setting of it, that is not written here; names it.
    """
    names = getattr(config, "architectures", None) or ["none"]
    if names[0] not in LAYOUTS:
        known = " or ".join(LAYOUTS)
        raise InputError(f"{model}: variant gguf: expected the architecture {known}, found {names[0]}; leave gguf out")
    found = {name: getattr(config, name, plain) for name, plain in ABSENT.items()}
    found["rope_type"] = get_rope(config).get("rope_type", "default")
    for name, plain in (ABSENT | {"rope_type": "default"}).items():
        if found[name] != plain:
            text = f"expected {name} {plain!r} in config.json, found {found[name]!r}"
            raise InputError(f"{model}: variant gguf: {text}; leave gguf out")
    if get_head_width(config) * config.num_attention_heads != config.hidden_size:
        raise InputError(f"{model}: variant gguf: expected heads that make up the hidden size; leave gguf out")
    return LAYOUTS[names[0]]


def get_rope(config: Any) -> dict[str, Any]:
    """Parameters of the rotary embeddings."""
    return getattr(config, "rope_parameters", None) or {}


def get_head_width(config: Any) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def pair_rotated_rows(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a (heads · width, …) weight in llama.cpp's order: i and i + width/2 of a head become neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def choose_type(shape: tuple[int, ...]) -> Any:
    """Numbers of a tensor: vectors stay in float32, rows that no blocks fill in float16."""
    if len(shape) == 1:
        return Types.F32
    return Types.Q8_0 if shape[-1] % BLOCK == 0 else Types.F16


def add_settings(writer: Any, config: Any) -> None:
    """The model's sizes."""
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
    """GGUF's name of each tensor; a head that shares the embeddings' weight is none.

    Raises:
        InputError: a tensor that the architecture has no place for.
    """
    places = gguf.get_tensor_name_map(layout.architecture, config.num_hidden_layers)
    mapped = {}
    for name in names:
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        place = places.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise InputError(f"{model}: variant gguf: expected tensors of {config.architectures[0]}, found {name}")
        mapped[name] = place
    return mapped


def write_gguf(model: str, path: Path) -> None:
    """Write a model folder's weights, settings and tokenizer as one GGUF file; a tensor in memory at a time.

    Args:
        model: local folder with model.safetensors.

    Raises:
        InputError: an architecture or a tokenizer that is not written here.
    """
    config, tokenizer = load_config(model), load_tokenizer(model)
    layout = find_layout(model, config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[layout.architecture])
    add_settings(writer, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    with safe_open(Path(model) / "model.safetensors", framework="pt") as weights:
        mapped = map_tensors(model, sorted(weights.keys()), layout, config)
        for name, place in mapped.items():
            announce(writer, place, tuple(weights.get_slice(name).get_shape()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in read_tensors(weights.get_tensor, mapped, heads if layout.has_paired_rotation else {}):
            writer.write_tensor_data(data)
    writer.close()
    logger.info("%s: %d tensors as %s, %d bytes", path, len(mapped), config.architectures[0], path.stat().st_size)


def announce(writer: Any, place: str, shape: tuple[int, ...]) -> None:
    """Tell the writer of a tensor whose data come later."""
    kind = choose_type(shape)
    stored = gguf.quant_shape_to_byte_shape(shape, kind) if kind == Types.Q8_0 else shape
    dtype = np.dtype({Types.Q8_0: np.uint8, Types.F16: np.float16, Types.F32: np.float32}[kind])
    writer.add_tensor_info(place, stored, dtype, int(np.prod(stored)) * dtype.itemsize, raw_dtype=kind)


def read_tensors(
    read: Callable[[str], torch.Tensor], mapped: dict[str, str], heads: dict[str, int]
) -> Iterator[NDArray[Any]]:
    """Yield the data of each tensor as they are stored.

    Args:
        read: a tensor by transformers' name.
        mapped: of `map_tensors`.
        heads: of the weights whose rows are paired, by a part of GGUF's name.
    """
    for name, place in mapped.items():
        weight = read(name).float().numpy()
        for part, count in heads.items():
            if part in place:
                weight = pair_rotated_rows(weight, count)
        yield gguf.quants.quantize(np.ascontiguousarray(weight), choose_type(weight.shape))
