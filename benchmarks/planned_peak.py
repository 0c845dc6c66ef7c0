"""The memory plan's figure for a measurement of gpu.py."""

from typing import Any


def plan_peak(
    measurement: dict[str, Any], models: dict[str, Any], settings: dict[str, Any], total_bytes: int | None
) -> dict[str, int] | None:
    """Return the peak that the memory plan expects of a measurement.

    Args:
        measurement: `part`, `way` and `batch` of a `Measurement`.
        models: content of config.json of `teacher` and `student`.
        settings: see `Settings`.
        total_bytes: memory of the GPU; None on a CPU.

    Returns:
        `peak_allocated_mb` and `peak_reserved_mb` in MiB; None where there is no plan.
    """
    return None
