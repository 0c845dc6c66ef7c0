"""Quantize a GGUF file with llama.cpp itself, to formats for which the package `gguf` has no quantizer."""

import logging
from pathlib import Path

from distill.common.errors import InputError

logger = logging.getLogger(__name__)


def quantize_file(source: Path, target: Path, file_type: int) -> None:
    """Write a quantized copy of a GGUF file, as `llama-quantize` does.

    Args:
        source: file with weights in float16 or float32.
        target: file to write.
        file_type: member of `gguf.LlamaFileType`. llama.cpp chooses the data type of each tensor.

    Raises:
        InputError: the package cyllama, which brings llama.cpp, is not installed, or llama.cpp reports an error.
    """
    try:
        from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
    except ImportError as error:
        raise InputError(
            f"{target.name}: expected the package cyllama, whose llama.cpp quantizes the file, but it cannot be "
            f"imported ({error}); install it with `pip install cyllama`, or remove gguf_q4_k_m from export.variants"
        ) from error
    params = LlamaModelQuantizeParams()
    params.ftype = int(file_type)  # it takes no subclass of int
    try:
        model_quantize(str(source), str(target), params)
    except RuntimeError as error:
        raise InputError(f"{source}: expected llama.cpp to quantize the file, found an error: {error}") from error
    logger.info("%s: quantized by llama.cpp to %d bytes", target, target.stat().st_size)
