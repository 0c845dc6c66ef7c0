"""Weights in the format of compressed-tensors, which vLLM and transformers load, from a trained student."""

import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from distill.common.errors import InputError
from distill.common.files import write_json
from distill.common.quantization_schemes import SCHEMES
from distill.models.load import load_config
from distill.models.memory import build_skeleton
from distill.models.scale_file import read_rounding
from distill.models.weight_rounding import (
    Rounded,
    WeightRounding,
    check_torchao,
    find_rounded_layers,
    make_rounding,
)

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"


def check_compressed_tensors(what: str) -> None:
    """Check that compressed-tensors is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("compressed_tensors") is None:
        raise InputError(
            f"{what}: expected the package compressed-tensors, which packs the weights, found no such package; "
            "install it with `pip install compressed-tensors` where the jobs run"
        )


def write_compressed(student: str, name: str, folder: Path) -> None:
    """Write the weights of a student with those of its linear layers rounded and packed, and its config.json.

    A student that was trained with this scheme keeps its scales, and so its values; the weights of any other are
    rounded here.

    Args:
        student: folder of the trained model.
        name: the scheme, a name in SCHEMES.
        folder: existing folder to write to.

    Raises:
        InputError: a package is missing, the scheme does not fit the model, or its weights are not those that its
            scales belong to.
    """
    check_torchao(f"{student}: {name}")
    check_compressed_tensors(f"{student}: {name}")
    skeleton = build_skeleton(load_config(student), torch.float32)
    try:
        layers = find_rounded_layers(skeleton, name)
    except InputError as error:
        raise InputError(f"{student}: {name}: {error}") from None
    weights = load_file(Path(student) / WEIGHTS_FILE)
    if absent := sorted(layer for layer in layers if f"{layer}.weight" not in weights):
        raise InputError(f"{student}: {name}: expected the weights of {absent[0]} in {WEIGHTS_FILE}, found none")
    dtype = weights[f"{next(iter(layers))}.weight"].dtype
    trained = read_rounding(student, dtype)
    scales: Mapping[str, torch.Tensor] = {}
    if trained and trained[0].name == name:
        rounding, scales = trained
        logger.info("the student was trained with weights in %s: keeping its scales", name)
    else:
        given = {layer: torch.nn.Linear(1, 1, device="meta") for layer in layers}
        for layer, one in given.items():
            one.weight = torch.nn.Parameter(weights[f"{layer}.weight"], requires_grad=False)
        rounding = make_rounding(name, dtype, given)
    scheme = make_scheme(name)
    for layer in layers:
        exact = weights.pop(f"{layer}.weight")
        rounded = (
            rounding.round(exact) if not scales else restore(f"{student}: {layer}", exact, scales, layer, rounding)
        )
        packed = pack(rounded, rounding, scheme)
        check_packed(f"{student}: {layer}", packed, rounded, rounding, scheme)
        weights |= {f"{layer}.{parameter}": value for parameter, value in packed.items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_config(Path(student), name, scheme, find_ignored(skeleton, layers), folder)


def restore(
    place: str, values: torch.Tensor, scales: Mapping[str, torch.Tensor], layer: str, rounding: WeightRounding
) -> Rounded:
    """The rounded weights of a layer from its stored values and scales.

    Args:
        place: student and layer, for messages.
        values: (rows, inputs) in the data type of the student.
        scales: (rows, groups) by layer.
        layer: the layer's name.
        rounding: how the student was trained.

    Raises:
        InputError: the values are not numbers of the scheme times the scales.
    """
    scale = scales.get(layer)
    if scale is None or values.shape[1] % scale.shape[1] or values.shape[0] != scale.shape[0]:
        raise InputError(f"{place}: expected scales of {tuple(values.shape)} weights, found other ones; train it again")
    step = (scale * rounding.shared_scale).repeat_interleave(values.shape[1] // scale.shape[1], dim=1)
    numbers = values.float() / step
    # NVFP4 has multiples of a half; stored values differ from number times scale by rounding to 16 bits.
    numbers = (numbers * 2).round() / 2 if rounding.scheme.is_float else numbers.round()
    exact = numbers * step
    if not torch.equal(exact.to(values.dtype), values):
        raise InputError(
            f"{place}: expected the weights of a training with {rounding.name}, found weights that are no multiples of "
            "their scales; train the student again"
        )
    return Rounded(exact, scale)


def make_scheme(name: str) -> Any:
    """The scheme as compressed-tensors describes it."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization import QuantizationScheme as Scheme

    scheme = SCHEMES[name]
    strategy = "tensor_group" if scheme.is_float else "group" if scheme.group else "channel"
    settings: dict[str, Any] = {"num_bits": scheme.bits, "type": "float" if scheme.is_float else "int"}
    settings |= {"strategy": strategy, "group_size": scheme.group, "symmetric": True}
    if scheme.is_float:
        settings |= {"scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn}
    return Scheme(targets=["Linear"], weights=QuantizationArgs(**settings), format=scheme.format)


def pack(rounded: Rounded, rounding: WeightRounding, scheme: Any) -> dict[str, torch.Tensor]:
    """The parameters of a layer in a checkpoint, by name."""
    from compressed_tensors.compressors import BaseCompressor

    state = {"weight": rounded.values, "weight_scale": rounded.scale}
    if rounding.scheme.is_float:
        state |= {"weight_global_scale": torch.tensor([1 / rounding.shared_scale])}
    packed = BaseCompressor.get_value_from_registry(scheme.format).compress(state, scheme)
    if not rounding.scheme.is_float:  # computed with float32, in which no integer is missed
        packed |= {"weight_scale": packed["weight_scale"].to(rounding.dtype)}
    return {name: value.contiguous() for name, value in packed.items()}


def check_packed(
    place: str, packed: Mapping[str, torch.Tensor], rounded: Rounded, rounding: WeightRounding, scheme: Any
) -> None:
    """Check that compressed-tensors reads the rounded weights back.

    Raises:
        InputError: it reads others.
    """
    from compressed_tensors.compressors import BaseCompressor

    read = BaseCompressor.get_value_from_registry(scheme.format).decompress(dict(packed), scheme)["weight"]
    if not torch.equal(read.to(rounding.dtype), rounded.values.to(rounding.dtype)):
        raise InputError(f"{place}: expected compressed-tensors to read the weights that it packed, found other ones")


def find_ignored(skeleton: Any, layers: Mapping[str, Any]) -> list[str]:
    """The linear layers whose weights are not rounded."""
    return [name for name, one in skeleton.named_modules() if isinstance(one, torch.nn.Linear) and name not in layers]


def write_config(student: Path, name: str, scheme: Any, ignored: list[str], folder: Path) -> None:
    """Write the student's config.json with the settings of the quantization."""
    from compressed_tensors.quantization import QuantizationConfig

    form = SCHEMES[name].format
    groups = {"group_0": scheme}
    stored = QuantizationConfig(config_groups=groups, ignore=ignored, format=form, quantization_status="compressed")
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"quantization_config": stored.model_dump(mode="json")})
