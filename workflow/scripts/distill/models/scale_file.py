"""The scales of a student that was trained with rounded weights, in a file beside its model.

The student's own file has numbers times scales, so that any program loads it. From these values alone the scales cannot
be recovered: rounding them again gives other scales, and other weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES
from distill.models.weight_rounding import WeightRounding

SCALES_FILE = Path("quantization") / "scales.safetensors"
SCALE = "weight_scale"
FACTS = "rounding"


def describe_rounding(rounding: WeightRounding) -> dict[str, str]:
    """The metadata of the file: a single entry, since safetensors writes several in any order."""
    return {FACTS: json.dumps({"scheme": rounding.name, "shared_scale": rounding.shared_scale})}


def read_rounding(folder: str | Path, dtype: torch.dtype) -> tuple[WeightRounding, Mapping[str, torch.Tensor]] | None:
    """The rounding of a student and its scales by layer, (rows, groups) in float32; None without the file.

    Args:
        folder: the student's folder.
        dtype: data type in which the student is saved.

    Raises:
        InputError: the file has another scheme than this version knows.
    """
    path = Path(folder) / SCALES_FILE
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
        scales = {name.removesuffix(f".{SCALE}"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if facts.get("scheme") not in SCHEMES:
        raise InputError(f"{path}: expected a scheme of {', '.join(SCHEMES)}, found {facts.get('scheme')!r}")
    return WeightRounding(facts["scheme"], dtype, facts["shared_scale"]), scales
