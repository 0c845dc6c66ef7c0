"""The table of comparisons: differences between two models' scores, a row a category, pair and metric."""

import csv
from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

from distill.common.errors import InputError
from distill.common.files import write_atomically
from distill.evaluation.score_table import read_number

FIELDS = ("category", "model", "other", "metric", "difference", "ci_low", "ci_high", "p_value", "n")


class Comparison(NamedTuple):
    """One row of comparisons.csv; None stands for an empty cell: an undefined figure, or one without an interval."""

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
    """Write comparisons.csv, one row a comparison."""
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)


def read_comparisons(path: str | PathLike[str]) -> list[Comparison]:
    """The rows of a comparisons.csv.

    Raises:
        InputError: other columns, or a cell that is no number; names file, line and field.
    """
    rows = []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise InputError(f"{path}:1: expected the columns {','.join(FIELDS)}, found {reader.fieldnames}")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            difference, low, high, p, n = (read_number(row, field, place) for field in FIELDS[4:])
            if n is None:
                raise InputError(f"{place}: n: expected a number, found an empty cell")
            category, model, other, metric = (row[name] for name in FIELDS[:4])
            rows.append(Comparison(category, model, other, metric, difference, low, high, p, int(n)))
    return rows
