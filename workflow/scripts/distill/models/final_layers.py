"""A model's final norm and head without its layers, for hidden states that something else has computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from distill.common.errors import InputError
from distill.models.completions import decoder_and_head, project
from distill.models.load import load_config
from distill.models.logits import read_transform


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from listing the weights of all layers, which are left out on purpose."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def count_layers(model: str) -> int:
    """Return the number of a model's decoder layers."""
    return int(load_config(model).get_text_config(decoder=True).num_hidden_layers)


class FinalLayers:
    """The layers behind the last hidden state: final norm, head, and what the model does to its logits.

    transformers loads the model with no decoder layers, so that names and formats of weights are its own business.

    Args:
        model: hub id or local folder.
        dtype: data type of the weights.

    Attributes:
        layers: number of the model's decoder layers.
        head: the output embeddings.
        transform: what happens to the logits behind the head.

    Raises:
        InputError: the model cannot be loaded, or has no single final norm.
    """

    def __init__(self, model: str, dtype: torch.dtype):
        config = load_config(model)
        self.layers = count_layers(model)
        empty = remove_layers(config)
        try:
            with without_load_report():
                result: Any = AutoModelForCausalLM.from_pretrained(
                    model, config=empty, dtype=dtype, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError, LookupError) as error:
            raise InputError(f"{model}: cannot load the final norm and the head alone: {error}") from error
        loaded, report = result
        if missing := sorted(report["missing_keys"]):
            raise InputError(f"{model}: expected the weights of the final norm and the head, found no {missing[0]}")
        loaded.eval().requires_grad_(False)
        decoder, self.head = decoder_and_head(loaded)
        self.norm = find_final_norm(model, decoder)
        self.transform = read_transform(config)
        self.dtype = dtype

    @torch.inference_mode()
    def normalize(self, states: Tensor) -> Tensor:
        """Return (rows, width) hidden states before the final norm as the head takes them."""
        rows: Tensor = self.norm(states.to(self.dtype))
        return rows

    @torch.inference_mode()
    def project(self, rows: Tensor) -> Tensor:
        """Return (rows, vocabulary) float32 logits of (rows, width) hidden states behind the norm."""
        return project(rows.to(self.dtype), self.head, self.transform).float()


def remove_layers(config: Any) -> Any:
    """Return a copy of a configuration without decoder layers, and without the quantization of their weights."""
    empty = deepcopy(config)
    text = empty.get_text_config(decoder=True)
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    for one in (empty, text):
        if hasattr(one, "quantization_config"):
            del one.quantization_config
    return empty


def find_final_norm(model: str, decoder: torch.nn.Module) -> torch.nn.Module:
    """Return the norm behind the decoder's layers.

    Raises:
        InputError: there is not exactly one.
    """
    norms = {name: part for name, part in decoder.named_children() if "norm" in type(part).__name__.lower()}
    if len(norms) != 1:
        raise InputError(
            f"{model}: expected one norm behind the layers, found {', '.join(norms) or 'none'}; use signal topk, or "
            "engine transformers"
        )
    return next(iter(norms.values()))
