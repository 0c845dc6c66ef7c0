"""Write a model as one GGUF file with 8 or 16 bits per weight (Q8_0, F16), for llama.cpp, Ollama and LM Studio.

Tensor names and layout are those of llama.cpp's convert_hf_to_gguf.py and come from the tables of its package `gguf`.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray
from safetensors import safe_open

from distill.common.errors import InputError
from distill.common.progress import Progress
from distill.export.gguf_layouts import Layout, find_layout, get_head_width
from distill.export.gguf_rope import FACTORS, add_rope, compute_factors
from distill.export.gguf_tokenizer import add_tokenizer
from distill.models.load import load_config, load_tokenizer

logger = logging.getLogger(__name__)

Types = gguf.GGMLQuantizationType
NUMPY_TYPES = {Types.Q8_0: np.uint8, Types.F16: np.float16, Types.F32: np.float32}


class Format(NamedTuple):
    """A data type of GGUF weights.

    Attributes:
        weights: type of matrices whose rows it can hold; others are float16, and vectors are float32.
        file_type: what the file's metadata call it.
    """

    weights: Any
    file_type: int


Q8_0 = Format(Types.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0)
F16 = Format(Types.F16, gguf.LlamaFileType.MOSTLY_F16)


def pair_rotated_rows(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows for llama.cpp: rows i and i + width/2 of each head become adjacent.

    Args:
        weight: shape (heads · width, …).
        heads: number of heads.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def choose_type(shape: tuple[int, ...], form: Format) -> Any:
    """Data type of a tensor: float32 for vectors, and float16 for rows that are not whole blocks of the format."""
    if len(shape) == 1:
        return Types.F32
    return form.weights if shape[-1] % GGML_QUANT_SIZES[form.weights][0] == 0 else Types.F16


def add_settings(writer: Any, config: Any, layout: Layout, form: Format) -> None:
    """Add the model's sizes and settings to the metadata."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(form.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = get_head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    add_rope(writer, config, width)
    layout.add_settings(writer, config)


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


def write_gguf(model: str, path: Path, form: Format) -> None:
    """Write weights, settings and tokenizer of a model folder as one GGUF file, with one tensor in memory at a time.

    Args:
        model: local folder with model.safetensors.
        path: file to write.
        form: data type of the weights.

    Raises:
        InputError: the architecture or the tokenizer is not supported, or a weight exceeds the range of float16.
    """
    config, tokenizer = load_config(model), load_tokenizer(model)
    layout = find_layout(model, config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[layout.architecture])
    add_settings(writer, config, layout, form)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    factors = compute_factors(config, get_head_width(config))
    with safe_open(Path(model) / "model.safetensors", framework="pt") as weights:
        mapped = map_tensors(model, sorted(weights.keys()), layout, config)
        for name, target in mapped.items():
            add_tensor_info(writer, target, tuple(weights.get_slice(name).get_shape()), form)
        if factors is not None:
            add_tensor_info(writer, FACTORS, factors.shape, form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        progress = Progress(len(mapped), path.name, unit="tensors")
        for name, target in mapped.items():
            weight = arrange_weight(weights.get_tensor(name), target, layout, config)
            writer.write_tensor_data(convert_weight(weight, f"{model}: {name}", form))
            progress.add(1)
        progress.close()
        if factors is not None:
            writer.write_tensor_data(factors)
    writer.close()
    logger.info("%s: %d tensors of %s, %d bytes", path, len(mapped), config.architectures[0], path.stat().st_size)


def add_tensor_info(writer: Any, name: str, shape: tuple[int, ...], form: Format) -> None:
    """Add a tensor's name, shape and data type to the header; its data follow later."""
    kind = choose_type(shape, form)
    dtype = np.dtype(NUMPY_TYPES[kind])
    stored_shape = gguf.quant_shape_to_byte_shape(shape, kind) if dtype == np.uint8 else shape
    writer.add_tensor_info(name, stored_shape, dtype, int(np.prod(stored_shape)) * dtype.itemsize, raw_dtype=kind)


def arrange_weight(tensor: torch.Tensor, name: str, layout: Layout, config: Any) -> NDArray[np.float32]:
    """A tensor in float32 with the rows and the offset that llama.cpp expects.

    Args:
        tensor: the tensor as stored by transformers.
        name: its name in GGUF.
        layout: the model's layout.
        config: the model's configuration.
    """
    weight = tensor.float().numpy()
    if layout.norm_offset and name.endswith("norm.weight"):
        return weight + np.float32(layout.norm_offset)
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    for part, count in heads.items() if layout.has_paired_rotation else ():
        if part in name:
            weight = pair_rotated_rows(weight, count)
    return np.ascontiguousarray(weight)


def convert_weight(weight: NDArray[np.float32], place: str, form: Format) -> NDArray[Any]:
    """The data of a weight as GGUF stores them.

    Args:
        weight: the weight in float32.
        place: model and tensor, for the error message.
        form: data type of the weights.

    Raises:
        InputError: a number is not finite, or exceeds the range of float16.
    """
    kind = choose_type(weight.shape, form)
    largest = float(np.abs(weight).max(initial=0.0))
    limit = float(np.finfo(np.float16 if kind == Types.F16 else np.float32).max)
    if not largest <= limit:  # true for NaN, too
        raise InputError(f"{place}: variant gguf: expected numbers up to {limit:g} for {kind.name}, found {largest:g}")
    return gguf.quants.quantize(weight, kind)
