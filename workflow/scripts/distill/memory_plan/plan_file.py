"""The file of a memory plan, which the rules read for their requests of memory. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import write_json
from distill.memory_plan.devices import Device
from distill.memory_plan.stage import Stage, Training, Work

PLAN_FILE = Path("artifacts/memory_plan.json")  # in the working directory
# Bytes of a job's host memory beside tensors: Python with its libraries and CUDA's host side, and records. An
# assumption on the safe side; Slurm kills a job that exceeds its request.
HOST = 6 * 2**30
STEP_MB = 1000  # requests are multiples of it


@dataclass(frozen=True)
class Estimate:
    """The memory of a stage on a device, in bytes.

    Attributes:
        weights: of all models.
        live: the most that tensors take at a time.
        reserved: the most that torch's allocator takes from the device for them; on a CPU the same as `live`.
        host: bytes of weights that are in the host's memory as a whole at some time, such as those of a student.
        where: when the most is taken.
        rows: sequences at a time.
        fits: `yes`, `tight` if less than a tenth of the device is left, or `no`.
    """

    weights: int
    live: int
    reserved: int
    host: int
    where: str
    rows: int
    fits: str


@dataclass
class Plan:
    """A memory plan.

    Attributes:
        device: name of the device.
        lengths: longest prompt and longest answer in tokens that the user gave; None takes them from the configuration.
        version: digest of the code and the libraries that made the estimates.
        estimates: by key of the stage's work.
        changes: for what does not fit, what a change would make of it: (the setting, its estimate) by key.
        stages: the stages, for readers without the configuration: `rule`, `name`, `wildcards`, the fields of the
            estimate of what takes most, and `request_mb`.
        problems: why there is no estimate, by key.
    """

    device: str
    lengths: tuple[int | None, int | None] = (None, None)
    version: str = ""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    changes: dict[str, list[tuple[str, Estimate]]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def get_key(work: Work, device: str) -> str:
    """Return a digest of what decides an estimate."""
    parts = asdict(work)
    several = (*parts.get("models", ()), *parts.get("more_heads", ()))
    for model in (parts.get("student"), parts.get("teacher"), parts.get("model"), *several):
        if model:
            del model["name"]
    if "quantization_aware" in parts and parts["quantization_aware"] is None:  # it came later: older plans stay
        del parts["quantization_aware"]
    return digest_of([type(work).__name__, parts, device])[:16]


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(plan))


def read_plan(path: Path) -> Plan | None:
    """Read a plan; None if there is none.

    Raises:
        InputError: the file is not a plan.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Plan(
            device=found["device"],
            lengths=tuple(found["lengths"]),
            version=found["version"],
            estimates={key: Estimate(**values) for key, values in found["estimates"].items()},
            changes={
                key: [(text, Estimate(**values)) for text, values in changes]
                for key, changes in found["changes"].items()
            },
            stages=found["stages"],
            problems=found["problems"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a memory plan ({error!r}); delete it, and run `make plan` again") from None


def describe_stage(plan: Plan, stage: Stage, device: Device) -> dict[str, Any] | None:
    """Return the entry of a stage in `Plan.stages`; None if the plan lacks it."""
    if not (found := find_estimates(plan, stage)):
        return None
    request = {"request_mb": request_mb(stage, found, device)}
    return {"rule": stage.rule, "name": stage.name, "wildcards": stage.wildcards, **asdict(combine(found)), **request}


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """Return the estimate of a stage whose works follow each other: that of the one that takes most."""
    return max(estimates, key=lambda one: one.reserved)


def find_estimates(plan: Plan, stage: Stage) -> list[Estimate]:
    """Return the estimates of a stage's works; empty unless the plan has all of them."""
    found = [plan.estimates.get(get_key(work, plan.device)) for work in stage.work]
    return [one for one in found if one is not None] if None not in found else []


def request_mb(stage: Stage, estimates: Sequence[Estimate], device: Device) -> int:
    """Return the memory in MB that a job of a stage requests from Slurm.

    It is the host's memory. Where the GPU shares it, and on a CPU, tensors are in it as well.
    """
    most = combine(estimates)
    needed = HOST + (most.reserved + device.reserved if device.is_unified else max(one.host for one in estimates))
    processes = max(work.processes if isinstance(work, Training) else 1 for work in stage.work)
    return -(-needed * processes // (STEP_MB * 10**6)) * STEP_MB
