"""What gpu.py measures: parts, measurements and settings. Imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distill.common.errors import InputError

PARTS = {
    "generation": "answers by continuous batching, by transformers' `generate` and by vLLM",
    "kd_step": "a training step by signal, and with other implementations",
    "signals": "cached signals of the teacher",
    "memory": "this project's peaks in every other part, beside those of the memory plan",
}
STEP_BATCHES = (2, 8)
# By way: the package that it needs besides torch and transformers, and whether it is this project's.
STEP_WAYS = {
    "plain": (None, False),
    "trl_gkd": ("trl", False),
    "trl_distillation": ("trl", False),
    "liger": ("liger_kernel", False),
    "online": (None, True),
    "online_int8": ("bitsandbytes", True),
    "hidden": (None, True),
    "topk": (None, True),
}
GENERATION_WAYS = {
    "one": (None, False),
    "batches_of_16": (None, False),
    "vllm": ("vllm", False),
    "ours": (None, True),
}
SIGNALS = ("hidden", "topk")


@dataclass(frozen=True)
class Measurement:
    """A measurement, which runs in a process of its own.

    Attributes:
        part: its part.
        way: what is measured.
        batch: records per training step; None in other parts.
        package: package that must be installed; None for those that every part needs.
        is_ours: whether it measures this project's code.
    """

    part: str
    way: str
    batch: int | None = None
    package: str | None = None
    is_ours: bool = True

    @property
    def group(self) -> str:
        """The measurements that it is compared with, such as `kd_step/2`."""
        return self.part if self.batch is None else f"{self.part}/{self.batch}"

    @property
    def name(self) -> str:
        """Its key in the results, such as `kd_step/2/online`."""
        return f"{self.group}/{self.way}"


def list_measurements() -> list[Measurement]:
    """List all measurements, in the order of the tables."""
    found = [Measurement("generation", way, None, *needs) for way, needs in GENERATION_WAYS.items()]
    for batch in STEP_BATCHES:
        found += [Measurement("kd_step", way, batch, *needs) for way, needs in STEP_WAYS.items()]
    return found + [Measurement("signals", kind) for kind in SIGNALS]


def choose_measurements(parts: Sequence[str]) -> list[Measurement]:
    """Return the measurements of some parts, in the order of the tables.

    Args:
        parts: names of PARTS; none means all.

    Raises:
        InputError: a part does not exist; lists those that do.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"ONLY: expected parts among {', '.join(PARTS)}, found {', '.join(unknown)}")
    chosen = set(parts or PARTS)
    return [one for one in list_measurements() if one.part in chosen or ("memory" in chosen and one.is_ours)]


def sort_by_urgency(measurements: Sequence[Measurement], attempted: Sequence[str]) -> list[Measurement]:
    """Sort measurements so that the most telling ones come first, in case the time does not suffice for all.

    Args:
        measurements: what is missing.
        attempted: names of those that failed in an earlier run; they come last.
    """

    def urgency(one: Measurement) -> tuple[bool, bool, bool]:
        return one.name in attempted, one.batch == STEP_BATCHES[-1], not (one.is_ours or one.package is None)

    return sorted(measurements, key=urgency)


# ---- Settings ----


@dataclass(frozen=True)
class Settings:
    """What all measurements of a file have in common.

    Attributes:
        shape: teacher and student, from SHAPES of shapes.py.
        device: `cuda` or `cpu`.
        precision: of the training; the teacher has bfloat16 weights with `bf16`.
        prompt_tokens: tokens of each prompt.
        completion_tokens: tokens of each completion; in generation, the mean of lengths that vary by half of it.
        steps: training steps that are measured, after one to warm up.
        records_one, records_batches, records_rolling: answers generated one at a time, in padded batches, and by
            continuous batching.
        signal_records: records whose signal is computed.
        top_k: tokens of the signal `topk`.
        temperature, alpha: of the training.
        gradient_checkpointing: whether the students recompute activations, as is this project's default.
        optimizer: of all students.
    """

    shape: str
    device: str
    precision: str = "bf16"
    prompt_tokens: int = 1000
    completion_tokens: int = 200
    steps: int = 5
    records_one: int = 8
    records_batches: int = 64
    records_rolling: int = 256
    signal_records: int = 128
    top_k: int = 64
    temperature: float = 2.0
    alpha: float = 0.5
    gradient_checkpointing: bool = True
    optimizer: str = "adamw_fused"


FULL = "qwen2.5-7b-1.5b"
TINY = {
    "prompt_tokens": 24,
    "completion_tokens": 8,
    "steps": 1,
    "records_one": 2,
    "records_batches": 16,
    "records_rolling": 24,
    "signal_records": 8,
    "top_k": 16,
}


def make_settings(shape: str, device: str) -> dict[str, Any]:
    """Return the settings of a shape as JSON; `tiny` has few and short records, to rehearse the benchmark."""
    changes: dict[str, Any] = TINY if shape == "tiny" else {}
    return asdict(Settings(shape, device, **changes))
