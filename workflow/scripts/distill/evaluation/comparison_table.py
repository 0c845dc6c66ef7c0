"""The table of comparisons: one row per category, pair of models and metric."""

from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

from distill.evaluation.tables import read_rows, write_rows


class Comparison(NamedTuple):
    """One row of comparisons.csv; None is an empty cell: an undefined difference, or one without an interval."""

    category: str
    model: str
    other: str
    metric: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    n: int


def write_comparisons(path: str | PathLike[str], rows: Iterable[Comparison]) -> None:
    """Write comparisons.csv."""
    write_rows(path, Comparison, rows)


def read_comparisons(path: str | PathLike[str]) -> list[Comparison]:
    """Read comparisons.csv; see `read_rows` for errors."""
    return read_rows(path, Comparison)
