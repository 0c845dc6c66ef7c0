"""PEFT adapters: load, merge and save."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from distill.common.errors import InputError
from distill.models.fingerprint import check_adapter


def load_adapter(model: Any, adapter: str, merge: bool) -> Any:
    """Load a PEFT adapter into a model.

    Args:
        model: the base model.
        adapter: folder of the adapter checkpoint.
        merge: whether to merge the adapter into the weights, which quantized weights do not support.

    Returns:
        The model with the adapter; with `merge`, a model of the base model's class.

    Raises:
        InputError: the folder is not an adapter checkpoint, or the adapter does not fit the model.
    """
    check_adapter(adapter)
    from peft import PeftModel

    try:
        with_adapter = PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{adapter}: the adapter does not fit the model: {error}") from error
    untie_adapted_head(with_adapter)
    return with_adapter.merge_and_unload() if merge else with_adapter


def untie_adapted_head(model: Any) -> None:
    """Untie an output head that has an adapter from the input embeddings; merging would change both otherwise."""
    base = model.get_base_model()
    head = base.get_output_embeddings()
    weight = head.get_base_layer().weight if hasattr(head, "get_base_layer") else None
    if weight is not None and weight is base.get_input_embeddings().weight:
        head.get_base_layer().weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False


def write_adapter(model: Any, folder: Path) -> None:
    """Save a PEFT model's adapter. Equal adapters give equal bytes, since an adapter is identified by its files."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set, whose order differs between processes
    model.save_pretrained(folder)
