"""The table of comparisons: one row per category, pair of models and metric."""

from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

from distill.evaluation.tables import read_rows, write_rows


class Comparison(NamedTuple):
    """One row of comparisons.csv; None is an empty cell: an undefined difference, or one without interval or spread.

    `seeds` and `other_seeds` are the numbers of replicas that each side is the mean of, 1 for a single model. `seed_sd`
    is how much the difference would vary between single trainings with other seeds: the root of the sum of the sample
    variances over the seeds of both sides, of which one without several seeds adds nothing.
    """

    category: str
    model: str
    other: str
    metric: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    n: int
    seeds: int = 1
    other_seeds: int = 1
    seed_sd: float | None = None


def write_comparisons(path: str | PathLike[str], rows: Iterable[Comparison]) -> None:
    """Write comparisons.csv."""
    write_rows(path, Comparison, rows)


def read_comparisons(path: str | PathLike[str]) -> list[Comparison]:
    """Read comparisons.csv; see `read_rows` for errors."""
    return read_rows(path, Comparison)
