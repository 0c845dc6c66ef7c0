"""A student's first weights from its teacher: evenly spaced layers, and all else as it is (arXiv 2010.13002)."""

import logging
from pathlib import Path
from typing import Any

import torch

from distill.common.errors import InputError
from distill.common.files import replace_directory
from distill.models.load import DTYPES, load_config, load_model, load_tokenizer
from distill.models.memory import build_skeleton, stored_quantization

logger = logging.getLogger(__name__)

ONE_FILE = "1000TB"  # of weights: the workflow waits for model.safetensors, however large it is


def choose_layers(total: int, kept: int) -> list[int]:
    """Places of evenly spaced layers, first and last among them; the first alone where one is kept.

    >>> choose_layers(28, 4)
    [0, 9, 18, 27]

    Raises:
        InputError: more than there are, or none.
    """
    if not 1 <= kept <= total:
        raise InputError(f"layers: expected 1 to {total}, as many as the teacher has, found {kept}")
    return [round(index * (total - 1) / max(kept - 1, 1)) for index in range(kept)]


def copy_layers(model: str, adapter: str | None, dtype: str, layers: int, out: Path) -> list[int]:
    """Write an ordinary model folder with some of the teacher's layers, its embeddings, final norm, head and tokenizer.

    The teacher is loaded on the CPU, unquantized, its adapter merged.

    Args:
        model: hub id or local folder.
        dtype: of the weights, a key of DTYPES.
        layers: how many are kept.

    Returns:
        Places of the layers kept.

    Raises:
        InputError: fewer layers in the teacher, weights that are quantized already, or layers that tell their kind by
            their place in a way that is not known here.
    """
    config = load_config(model)
    if stored := stored_quantization(config):
        raise InputError(
            f"{model}: expected weights that are not quantized, found {stored}: a student cannot be copied from them; "
            "name its own `model`"
        )
    total = config.get_text_config().num_hidden_layers
    try:
        chosen = choose_layers(total, layers)
    except InputError as error:
        raise InputError(f"{model}: {error} (students.NAME.model.layers)") from None
    tokenizer = load_tokenizer(model)
    teacher = load_model(model, torch.device("cpu"), DTYPES[dtype], adapter=adapter)
    keep_layers(model, teacher, chosen)
    with replace_directory(out) as folder:
        teacher.save_pretrained(folder, max_shard_size=ONE_FILE)
        tokenizer.save_pretrained(folder)
    listed = ", ".join(map(str, chosen))
    logger.info("%s: layers %s of %d -> %s, %d weights", model, listed, total, out, teacher.num_parameters())
    return chosen


def keep_layers(name: str, model: Any, chosen: list[int]) -> None:
    """Leave a model the chosen layers alone, in place; its configuration follows. It is for saving, not for running.

    Args:
        name: of the model, for messages.

    Raises:
        InputError: no list of layers is found, or a model of the new configuration has other tensors.
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    decoder = model.get_decoder()
    lists = [
        place
        for place, child in decoder.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == total
    ]
    if not lists:
        raise InputError(f"{name}: expected a decoder with a list of its {total} layers, found none: name a `model`")
    for place in lists:
        layers = getattr(decoder, place)
        setattr(decoder, place, torch.nn.ModuleList(layers[index] for index in chosen))
    config.num_hidden_layers = len(chosen)
    for key, value in config.to_dict().items():
        # Such as layer_types and no_rope_layers: a kind for each layer.
        if "layer" in key and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, key, [value[index] for index in chosen])
    expected, found = (
        {key: tuple(tensor.shape) for key, tensor in one.state_dict().items()}
        for one in (build_skeleton(model.config, model.dtype), model)
    )
    if expected != found:
        different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise InputError(
            f"{name}: expected layers of one kind, or kinds listed by layer in config.json; those of the copy would be "
            f"others (first {different[0]}): name a `model` of the student's own"
        )
