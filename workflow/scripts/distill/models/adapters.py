"""PEFT adapters: load, merge and save."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from distill.common.errors import InputError
from distill.models.fingerprint import check_adapter
from distill.models.split_check import TOLERANCE, make_probe

MOST_NAMED = 3  # keys in an error message


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
    from peft import PeftConfig, PeftModel

    if merge and getattr(PeftConfig.from_pretrained(adapter), "alora_invocation_tokens", None):
        raise InputError(f"{adapter}: expected an adapter that can be merged, found an activated LoRA (aLoRA)")
    try:
        with_adapter = PeftModel.from_pretrained(model, adapter)
        # `from_pretrained` only warns about missing weights and ignores those of unknown modules.
        report = with_adapter.load_adapter(adapter, with_adapter.active_adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{adapter}: the adapter does not fit the model: {error}") from error
    for kind, keys in (("missing", report.missing_keys), ("unknown to the model", report.unexpected_keys)):
        if keys:
            named = ", ".join(sorted(keys)[:MOST_NAMED])
            raise InputError(
                f"{adapter}: the adapter does not fit the model: expected the weights of its own modules, "
                f"{len(keys)} are {kind}, such as {named}"
            )
    untie_adapted_head(with_adapter)
    return merge_adapter(with_adapter, adapter) if merge else with_adapter.eval()


def set_adapter(model: Any, folder: Path) -> None:
    """Set the weights of a PEFT model's adapter to those of a saved one.

    Args:
        model: PEFT model, changed in place.
        folder: folder from `write_adapter`, of an adapter with the same options.

    Raises:
        InputError: the adapter has other weights.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    expected = {name for name in model.state_dict() if "lora_" in name}
    try:
        report: Any = set_peft_model_state_dict(model, weights)
    except RuntimeError as error:
        raise InputError(f"{folder}: the adapter does not fit the model: {error}") from error
    missing = expected & set(report.missing_keys)
    if missing or report.unexpected_keys:
        named = min([*missing, *report.unexpected_keys])
        raise InputError(f"{folder}: expected the weights of this model's adapter, {named} does not fit")


@torch.no_grad()
def merge_adapter(model: Any, name: str) -> Any:
    """Merge a PEFT model's adapter into its weights, and check that the logits of random token ids stay the same.

    Args:
        model: PEFT model, put into evaluation mode.
        name: of the adapter, for messages.

    Returns:
        A model of the base model's class.

    Raises:
        InputError: the merged model computes other logits; names the difference.
    """
    model.eval()
    ids = make_probe(model)
    expected = model(input_ids=ids, use_cache=False).logits.float()
    merged = model.merge_and_unload()
    found = merged(input_ids=ids, use_cache=False).logits.float()
    largest, difference = expected.abs().max().item(), (found - expected).abs().max().item()
    if not difference <= TOLERANCE * largest:  # also for NaN
        raise InputError(
            f"{name}: the adapter cannot be merged: expected the same logits before and after, which are up to "
            f"{largest:.3g}, found a difference of {difference:.3g}"
        )
    return merged


def untie_adapted_head(model: Any) -> None:
    """Untie the output head from the input embeddings if one of them is adapted; merging would change both otherwise.

    Args:
        model: PEFT model, changed in place.
    """
    base = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    own_head, own_embeddings = unwrap(head), unwrap(embeddings)
    if (own_head is head and own_embeddings is embeddings) or own_head.weight is not own_embeddings.weight:
        return
    weight = own_head.weight
    own_head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False


def unwrap(module: Any) -> Any:
    """The module that an adapter has replaced; the module itself without an adapter."""
    if hasattr(module, "get_base_layer"):
        return module.get_base_layer()
    return getattr(module, "original_module", module)  # of modules_to_save


def write_adapter(model: Any, folder: Path) -> None:
    """Save a PEFT model's adapter. Equal adapters give equal bytes, since an adapter is identified by its files."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set, whose order differs between processes
    model.save_pretrained(folder)
