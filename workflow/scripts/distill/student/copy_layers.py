"""A student initialised with evenly spaced layers of its teacher (arXiv 2010.13002)."""

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from distill.common.errors import InputError
from distill.common.files import replace_directory
from distill.models.load import DTYPES, load_config, load_model, load_tokenizer
from distill.models.memory import build_skeleton, stored_quantization
from distill.models.save import save_model
from distill.student.decoder_layers import find_layer_lists

logger = logging.getLogger(__name__)

ADVICE = "set the student's `model` to a pretrained model instead of a copy"


def choose_layers(total: int, kept: int) -> list[int]:
    """Indices of evenly spaced layers, including the first and the last; only the first if one is kept.

    >>> choose_layers(28, 4)
    [0, 9, 18, 27]

    Raises:
        InputError: `kept` is below 1 or above `total`.
    """
    if not 1 <= kept <= total:
        raise InputError(f"layers: expected 1 to {total}, as many as the teacher has, found {kept}")
    return [round(index * (total - 1) / max(kept - 1, 1)) for index in range(kept)]


def copy_layers(model: str, adapter: str | None, dtype: str, layers: int, out: Path) -> list[int]:
    """Write a model folder with some of the teacher's layers, and its embeddings, final norm, head and tokenizer.

    The teacher is loaded on the CPU without quantization, and its adapter is merged.

    Args:
        model: hub id or local folder of the teacher.
        adapter: LoRA checkpoint of the teacher.
        dtype: data type of the weights, a key of DTYPES.
        layers: number of layers to copy.
        out: folder to write.

    Returns:
        Indices of the copied layers.

    Raises:
        InputError: the teacher has fewer layers, its weights are quantized, or its layers are of several kinds that its
            configuration does not list layer by layer.
    """
    config = load_config(model)
    if stored := stored_quantization(config):
        raise InputError(f"{model}: expected weights that are not quantized, found {stored}; {ADVICE}")
    total = config.get_text_config().num_hidden_layers
    try:
        chosen = choose_layers(total, layers)
    except InputError as error:
        raise InputError(f"{model}: {error} (students.NAME.model.layers)") from None
    tokenizer = load_tokenizer(model)
    teacher = load_model(model, torch.device("cpu"), DTYPES[dtype], adapter=adapter, is_run=False)
    try:
        keep_layers(model, teacher, chosen)
        with replace_directory(out) as folder:
            save_model(teacher, tokenizer, folder)
    except StrictDataclassError as error:
        raise InputError(f"{model}: layers {chosen} are no model of this architecture: {error}; {ADVICE}") from error
    listed = ", ".join(map(str, chosen))
    logger.info("%s: copied layers %s of %d to %s, %d weights", model, listed, total, out, teacher.num_parameters())
    return chosen


def keep_layers(name: str, model: Any, chosen: list[int]) -> None:
    """Remove all other layers from a model and its configuration, in place; the result can be saved, not run.

    Args:
        name: name of the model, for messages.
        model: a causal model.
        chosen: indices of the layers to keep.

    Raises:
        InputError: the decoder has no list of layers, or the layers do not match the new configuration.
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    decoder = model.get_decoder()
    lists = find_layer_lists(model)
    if not lists:
        raise InputError(f"{name}: expected a decoder with a list of its {total} layers, found none; {ADVICE}")
    for attribute, layers in lists.items():
        setattr(decoder, attribute, torch.nn.ModuleList(layers[index] for index in chosen))
    config.num_hidden_layers = len(chosen)
    for key, value in config.to_dict().items():
        # Settings with one value per layer, such as layer_types and no_rope_layers.
        if "layer" in key and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, key, [value[index] for index in chosen])
    check_shapes(name, model)


def check_shapes(name: str, model: Any) -> None:
    """Check that a model has the tensors that its configuration describes.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape; names the first.
    """
    expected, found = (
        {key: tuple(tensor.shape) for key, tensor in one.state_dict().items()}
        for one in (build_skeleton(model.config, model.dtype), model)
    )
    if expected != found:
        different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise InputError(
            f"{name}: expected layers of one kind, or kinds listed by layer in config.json; the kept layers do not "
            f"match the new configuration (first {different[0]}); {ADVICE}"
        )
