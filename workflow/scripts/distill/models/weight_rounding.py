"""Round weights to a quantization scheme with torchao, and find the layers whose weights are rounded.

The scales of integers are kept in the data type of the saved model, and the scale that all blocks of NVFP4 share is a
power of two. Both make the product of number and scale the same in every program that dequantizes the weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES, QuantizationScheme

# The largest numbers of E4M3 and E2M1, and room for the largest weight to grow while the scale of a model stays.
E4M3_MAX = 448.0
E2M1_MAX = 6.0
HEADROOM = 2.0
LEAST_SCALE = 2.0**-23  # of integers: that of a group of zeros, which float16 can hold


def check_torchao(what: str) -> None:
    """Check that torchao is installed.

    Args:
        what: the option that needs it, with its value.

    Raises:
        InputError: it is not.
    """
    if find_spec("torchao") is None:
        raise InputError(
            f"{what}: expected the package torchao, which rounds the weights, found no such package; install it with "
            "`pip install torchao` where the jobs run"
        )


@dataclass(frozen=True)
class Rounded:
    """Rounded weights.

    Attributes:
        values: (rows, inputs) in float32; number times scale.
        scale: (rows, groups) in float32.
    """

    values: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class WeightRounding:
    """A scheme for the weights of one model.

    Attributes:
        name: name in SCHEMES.
        dtype: data type in which the model is saved.
        shared_scale: the factor of all scales of a floating-point scheme, a power of two; 1 for integers.
    """

    name: str
    dtype: torch.dtype
    shared_scale: float = 1.0

    @property
    def scheme(self) -> QuantizationScheme:
        """The registry's entry."""
        return SCHEMES[self.name]

    @torch.no_grad()
    def round(self, weight: torch.Tensor) -> Rounded:
        """Round a matrix of weights, (rows, inputs)."""
        weight = weight.detach().float().contiguous()
        return self.round_floats(weight) if self.scheme.is_float else self.round_integers(weight)

    def round_integers(self, weight: torch.Tensor) -> Rounded:
        """Symmetric integers: the largest weight of a group lies half a step beyond the largest integer."""
        from torchao.quantization import quant_primitives as ao

        block = (1, self.scheme.group or weight.shape[1])
        low, high = -(2 ** (self.scheme.bits - 1)), 2 ** (self.scheme.bits - 1) - 1
        symmetric = ao.MappingType.SYMMETRIC
        scale, zero = ao.choose_qparams_affine(weight, symmetric, block, torch.int8, low, high, eps=LEAST_SCALE)
        scale = scale.to(self.dtype).float()
        numbers = ao.quantize_affine(weight, block, scale, zero, torch.int8, low, high)
        values = ao.dequantize_affine(numbers, block, scale, zero, torch.int8, low, high, output_dtype=torch.float32)
        return Rounded(values, scale.reshape(weight.shape[0], -1))

    def round_floats(self, weight: torch.Tensor) -> Rounded:
        """NVFP4."""
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

        shared = torch.full((), self.shared_scale, device=weight.device)
        tensor = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=shared)
        return Rounded(tensor.dequantize(torch.float32), tensor.scale.float().reshape(weight.shape[0], -1))


def make_rounding(name: str, dtype: torch.dtype, layers: Mapping[str, torch.nn.Linear]) -> WeightRounding:
    """The rounding of a model with these layers.

    Layers that a server fuses, such as those of queries, keys and values, need the same shared scale, so that all have
    it.
    """
    if not SCHEMES[name].is_float:
        return WeightRounding(name, dtype)
    largest = torch.stack([layer.weight.detach().abs().max().float().cpu() for layer in layers.values()]).max()
    least = HEADROOM * max(float(largest), torch.finfo(torch.float32).tiny) / (E4M3_MAX * E2M1_MAX)
    return WeightRounding(name, dtype, 2.0 ** math.ceil(math.log2(least)))


def find_rounded_layers(model: Any, name: str) -> dict[str, torch.nn.Linear]:
    """The layers whose weights a scheme rounds, by name: the decoder's linear layers.

    Args:
        model: a causal model, which may be a skeleton without weights.
        name: name in SCHEMES.

    Raises:
        InputError: the scheme does not fit the model.
    """
    scheme, head = SCHEMES[name], model.get_output_embeddings()
    kind = type(model).__name__
    experts = [key for key, weight in model.named_parameters() if weight.dim() == 3 and "expert" in key]
    if experts:
        raise InputError(f"expected linear layers, found the weights of experts in {kind} ({experts[0]} and others)")
    layers = {key: one for key, one in model.named_modules() if type(one) is torch.nn.Linear and one is not head}
    if not layers:
        raise InputError(f"expected linear layers, found none in {kind}")
    for key, layer in layers.items():
        if scheme.group and layer.in_features % scheme.group:
            raise InputError(
                f"expected layers with {scheme.group}·n inputs, found {layer.in_features} in {key} of {kind}"
            )
    return layers
