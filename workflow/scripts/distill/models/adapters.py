"""Adapters as folders that PEFT loads."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from distill.common.errors import InputError
from distill.models.fingerprint import check_adapter


def load_adapter(model: Any, adapter: str, merge: bool) -> Any:
    """Put a PEFT adapter on a model; merged where the weights can take it.

    Raises:
        InputError: the folder is no adapter checkpoint.
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
    """Give a head with an adapter a weight of its own where it shares the embeddings': merging would change both."""
    base = model.get_base_model()
    head = base.get_output_embeddings()
    weight = head.get_base_layer().weight if hasattr(head, "get_base_layer") else None
    if weight is not None and weight is base.get_input_embeddings().weight:
        head.get_base_layer().weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False


def write_adapter(model: Any, folder: Path) -> None:
    """Write a PEFT model's adapter, configuration and weights: the same bytes in each run, for it is known by them."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # peft has a set, of another order in each process
    model.save_pretrained(folder)
