"""The score table: metrics files gathered into one long table, and that table as text."""

import csv
import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.errors import InputError
from distill.common.files import write_atomically
from distill.common.names import BASE, POOLED, TEACHER
from distill.common.variants import split_name

FIELDS = ("model", "category", "metric", "value", "ci_low", "ci_high", "n")
SUFFIX = ".metrics.json"


class Score(NamedTuple):
    """One row of metrics.csv; None stands for an empty cell: an undefined figure, or one without an interval."""

    model: str
    category: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


def order_models(models: Iterable[str]) -> list[str]:
    """The teacher, then each student in order of first appearance, followed by its `_base` and its variants."""
    seen = list(dict.fromkeys(models))
    owners = {model: get_owner(model, seen) for model in seen}
    first: dict[str, int] = {}
    for position, model in enumerate(seen):
        first.setdefault(owners[model], position)

    def place(model: str) -> tuple[bool, int, bool, bool]:
        is_own = model == owners[model]
        return model != TEACHER, first[owners[model]], not is_own, not (is_own or is_base(model, seen))

    return sorted(seen, key=place)


def get_owner(model: str, models: Iterable[str]) -> str:
    """The student of `models` that the model is before distillation, or a variant of; itself where it is neither."""
    student, suffix = split_name(model)
    return student if suffix and student in models else model


def is_base(model: str, models: Iterable[str]) -> bool:
    """Whether the model is another one of `models` before distillation."""
    return split_name(model)[1] == BASE and get_owner(model, models) != model


def order_categories(categories: Iterable[str]) -> list[str]:
    """Categories in order of first appearance, the pooled one last."""
    return sorted(dict.fromkeys(categories), key=lambda category: category == POOLED)


def read_metrics(path: str | PathLike[str]) -> list[Score]:
    """The scores of one metrics file; model and category come from its path `…/{model}/{category}.metrics.json`.

    Raises:
        InputError: another path, or a file that is no metrics file.
    """
    path = Path(path)
    model, category = path.parent.name, path.name.removesuffix(SUFFIX)
    if not model or category in ("", path.name):
        raise InputError(f"{path}: expected a path that ends in MODEL/CATEGORY{SUFFIX}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = []
        for metric, n in content["n"].items():
            low, high = content["intervals"][metric]
            scores.append(Score(model, category, metric, content[metric], low, high, n))
        return scores
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a metrics file as score_predictions.py writes it ({error!r})") from error


def gather_scores(paths: Sequence[str | PathLike[str]]) -> list[Score]:
    """All scores, by model, category and metric in the order of a table's reader: see the order_* functions.

    Raises:
        InputError: a file that is no metrics file, or two for one model and category.
    """
    found: dict[tuple[str, str], list[Score]] = {}
    owners: dict[tuple[str, str], str | PathLike[str]] = {}
    for path in paths:
        scores = read_metrics(path)
        key = (Path(path).parent.name, Path(path).name.removesuffix(SUFFIX))
        if key in found:
            raise InputError(f"{path}: model and category are those of {owners[key]}")
        found[key], owners[key] = scores, path
    models, categories = order_models(key[0] for key in found), order_categories(key[1] for key in found)
    keys = [(model, category) for model in models for category in categories]
    return [score for key in keys for score in found.get(key, [])]


def write_scores(path: str | PathLike[str], scores: Iterable[Score]) -> int:
    """Write metrics.csv, one row a score; returns how many rows."""
    count = 0
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for score in scores:
            writer.writerow(["" if cell is None else cell for cell in score])
            count += 1
    return count


def read_scores(path: str | PathLike[str]) -> list[Score]:
    """The scores of a metrics.csv.

    Raises:
        InputError: other columns, or a cell that is no number; names file, line and field.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise InputError(f"{path}:1: expected the columns {','.join(FIELDS)}, found {reader.fieldnames}")
        return [read_row(row, f"{path}:{reader.line_num}") for row in reader]


def read_number(row: dict[str, Any], field: str, place: str) -> float | None:
    """A cell of a table; None where it is empty. `place` is the file and line that an error names."""
    try:
        return float(row[field]) if row[field] != "" else None
    except (TypeError, ValueError):
        raise InputError(f"{place}: {field}: expected a number, found {row[field]!r}") from None


def read_row(row: dict[str, Any], place: str) -> Score:
    """One row of metrics.csv; `place` is the file and line that an error names."""
    value, low, high, n = (read_number(row, field, place) for field in FIELDS[3:])
    if n is None:
        raise InputError(f"{place}: n: expected a number, found an empty cell")
    return Score(row["model"], row["category"], row["metric"], value, low, high, int(n))
