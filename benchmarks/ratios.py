"""Ratios between ways that do the same work."""

from collections.abc import Callable, Sequence
from typing import Any

Rows = dict[str, dict[str, Any]]


def compare(
    rows: Rows, ours: Sequence[str], speed: Callable[[dict[str, Any]], float], memory: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Compute speed and memory of this project's ways relative to each other way.

    Args:
        rows: measured ways by name.
        ours: this project's ways.
        speed: maps a row to its speed.
        memory: key of a row's peak memory.

    Returns:
        {ours: {other: {"speed": …, "memory": …}}}; a speed above 1 and a memory below 1 are in favour of `ours`.
    """
    return {
        mine: {
            other: {
                "speed": round(speed(rows[mine]) / speed(rows[other]), 2),
                "memory": round(rows[mine][memory] / rows[other][memory], 3),
            }
            for other in rows
            if other != mine
        }
        for mine in ours
        if mine in rows
    }
