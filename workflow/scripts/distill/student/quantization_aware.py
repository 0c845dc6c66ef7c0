"""Quantization-aware training: the forward pass computes with rounded weights, the optimizer updates the exact ones.

torchao's own preparation (`QATConfig`, 0.18) is not used: it refuses NVFP4 without quantized activations and devices
older than Blackwell, gives the largest weight of a group no gradient, and keeps a float32 copy of the weights for
the backward pass. Its rounding is, see `models.weight_rounding`.
"""

import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from distill.common.errors import InputError
from distill.models.scale_file import SCALE, SCALES_FILE, describe_rounding
from distill.models.split_check import make_probe
from distill.models.weight_rounding import WeightRounding, check_torchao, find_rounded_layers, make_rounding

logger = logging.getLogger(__name__)

OPTION = "train.quantization_aware"


class StraightThrough(torch.autograd.Function):
    """Rounded weights whose gradient is that of the exact ones."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: WeightRounding) -> Tensor:
        """Round a matrix, (rows, inputs)."""
        return rounding.round(weight).values.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on."""
        return gradient, None


def check_model(model: Any, name: str) -> None:
    """Check that the weights of a model, which may be a skeleton, can be rounded while it trains.

    Raises:
        InputError: torchao is not installed, or the scheme does not fit the model.
    """
    check_torchao(f"{OPTION}: {name}")
    try:
        find_rounded_layers(model, name)
    except InputError as error:
        raise InputError(f"{OPTION}: {name}: {error}") from None


def add_fake_quantization(model: Any, name: str, dtype: torch.dtype) -> None:
    """Let the decoder's linear layers compute with rounded weights, by a scheme that is fitted to the weights.

    Args:
        model: a causal model.
        name: the scheme, a name in SCHEMES.
        dtype: data type in which the model will be saved.
    """
    compute_rounded(model, make_rounding(name, dtype, find_rounded_layers(model, name)))


def compute_rounded(model: Any, rounding: WeightRounding) -> None:
    """Let the decoder's linear layers compute with rounded weights. Parameters, their names and random state stay."""
    layers = find_rounded_layers(model, rounding.name)

    def compute(layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
        return linear(inputs, StraightThrough.apply(layer.weight, rounding), layer.bias)

    for layer in layers.values():
        layer.forward = types.MethodType(compute, layer)  # type: ignore[method-assign]
    model.weight_rounding = rounding
    logger.info("quantization-aware training: %d linear layers compute with weights in %s", len(layers), rounding.name)


@torch.no_grad()
def check_used(source: str, model: Any) -> None:
    """Check that a model runs all layers whose weights are rounded, instead of reading their weights itself.

    Args:
        source: name of the model, for messages.
        model: with `add_fake_quantization`.

    Raises:
        InputError: names a layer that is not run.
    """
    layers = find_rounded_layers(model, model.weight_rounding.name)
    unused = set(layers)
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: unused.discard(name)) for name, layer in layers.items()
    ]
    was_training = model.training
    try:
        model.eval()(input_ids=make_probe(model), use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if unused:
        raise InputError(
            f"{OPTION}: {model.weight_rounding.name}: expected a model that runs its linear layers, but "
            f"{type(model).__name__} does not run {min(unused)} ({source}); set it to null"
        )


@torch.no_grad()
def round_weights(model: Any, folder: Path) -> None:
    """Replace the exact weights by the rounded ones, and write the scales beside the model.

    Args:
        model: with `add_fake_quantization`; changed in place.
        folder: the student's folder.
    """
    rounding = model.weight_rounding
    scales = dict(round_layers(model, rounding))
    path = folder / SCALES_FILE
    path.parent.mkdir()
    save_file(scales, path, metadata=describe_rounding(rounding))


def round_layers(model: Any, rounding: WeightRounding) -> Iterator[tuple[str, Tensor]]:
    """Round the layers of a model in place; yield the name and the values of each scale, (rows, groups) in float32."""
    for name, layer in find_rounded_layers(model, rounding.name).items():
        rounded = rounding.round(layer.weight)
        layer.weight.copy_(rounded.values)
        yield f"{name}.{SCALE}", rounded.scale.cpu()
