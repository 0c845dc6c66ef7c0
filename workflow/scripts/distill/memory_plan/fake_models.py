"""Models of fake tensors, as `models.load` would load them."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from distill.models.load import choose_attention, quantization_config
from distill.models.memory import ABSMAX_BLOCK, NF4_BLOCK, quantized_layers


def make_config(settings: Mapping[str, Any], layers: int | None = None) -> Any:
    """The configuration of a model from the content of its config.json.

    Args:
        settings: the content.
        layers: number of layers to keep, from the first on; None keeps all.
    """
    config = AutoConfig.for_model(**copy.deepcopy(dict(settings)))
    text = config.get_text_config()
    if layers is not None:
        for key, value in text.to_dict().items():
            if "layer" in key and isinstance(value, list) and len(value) == text.num_hidden_layers:
                setattr(text, key, value[:layers])
        text.num_hidden_layers = layers
    return config


def make_model(
    config: Any, dtype: torch.dtype, device: str, quantization: str = "none", is_trained: bool = False
) -> Any:
    """A model of fake tensors; call it within `fake_cuda`.

    Args:
        config: from `make_config`.
        dtype: dtype of weights that are not quantized.
        device: `cuda` or `cpu`.
        quantization: `none`, `int8` or `nf4`.
        is_trained: whether its weights need gradients.
    """
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    attention = choose_attention(kind, torch.device(device), dtype, for_generation=True)
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if quantization != "none":
        quantize(model, device, quantization, dtype)
    if not is_trained:
        model.eval().requires_grad_(False)
    return model


def quantize(model: Any, device: str, quantization: str, dtype: torch.dtype) -> None:
    """Replace a model's linear layers by bitsandbytes' layers with fake weights, as transformers does when it loads."""
    quantization_config(quantization, dtype)  # silences a warning of every call
    make = {"int8": make_int8_layer, "nf4": make_nf4_layer}[quantization]
    for name, layer in quantized_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(layer, device, dtype))
    model.is_quantized = True


def make_int8_layer(layer: torch.nn.Linear, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A layer with weights quantized by LLM.int8()."""
    import bitsandbytes as bnb

    rows, width = layer.weight.shape
    with unset_fake_temporarily(), torch.device("meta"):
        made = bnb.nn.Linear8bitLt(width, rows, bias=layer.bias is not None, has_fp16_weights=False, threshold=6.0)
    values = torch.empty(rows, width, dtype=torch.int8, device=device)
    # A plain parameter: Int8Params quantizes what it is given.
    weight: Any = torch.nn.Parameter(values, requires_grad=False)
    weight.CB = weight.SCB = None
    made.weight = weight
    made.state.CB, made.state.SCB = values, torch.empty(rows, device=device)
    made.bias = layer.bias
    return made


def make_nf4_layer(layer: torch.nn.Linear, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A layer with weights quantized to nf4 with double quantization."""
    import bitsandbytes as bnb
    from bitsandbytes.functional import QuantState

    rows, width = layer.weight.shape
    blocks = -(-rows * width // NF4_BLOCK)
    with unset_fake_temporarily(), torch.device("meta"):
        made = bnb.nn.Linear4bit(width, rows, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4")
    scales = QuantState(
        absmax=torch.empty(-(-blocks // ABSMAX_BLOCK), device=device),
        code=torch.empty(256, device=device),
        blocksize=ABSMAX_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8, device=device),
        shape=torch.Size((rows, width)),
        code=torch.empty(16, device=device),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty((), device=device),
        state2=scales,
    )
    values = torch.empty(-(-rows * width // 2), 1, dtype=torch.uint8, device=device)
    weight: Any = torch.nn.Parameter(values, requires_grad=False)
    weight.quant_state = made.quant_state = state
    made.weight = weight
    made.bias = layer.bias
    return made


@contextmanager
def without_moves() -> Iterator[None]:
    """Keep modules where they are: PEFT moves an adapter to its layer's device, but fake weights cannot be swapped."""
    with patch.object(torch.nn.Module, "to", lambda self, *args, **kwargs: self):
        yield
