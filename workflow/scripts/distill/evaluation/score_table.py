"""The score table: metrics files gathered into one long table, and the order of its models and categories."""

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from distill.common.errors import InputError
from distill.common.names import BASE, POOLED, TEACHER
from distill.common.variants import split_name
from distill.evaluation.metrics import list_metrics
from distill.evaluation.tables import read_rows, write_rows

SUFFIX = ".metrics.json"


class Score(NamedTuple):
    """One row of metrics.csv; None is an empty cell: an undefined score, or one without an interval."""

    model: str
    category: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


def order_models(models: Iterable[str]) -> list[str]:
    """The teacher, then the students in order of first appearance, each followed by its `_base` and its variants."""
    seen = list(dict.fromkeys(models))
    owners = {model: get_owner(model, seen) for model in seen}
    first: dict[str, int] = {}
    for position, model in enumerate(seen):
        first.setdefault(owners[model], position)

    def place(model: str) -> tuple[bool, int, bool, bool]:
        is_student = model == owners[model]
        return model != TEACHER, first[owners[model]], not is_student, not (is_student or is_base_of(model, seen))

    return sorted(seen, key=place)


def get_owner(model: str, models: Iterable[str]) -> str:
    """The student among `models` whose `_base` or variant the model is; else the model itself."""
    student, suffix = split_name(model)
    return student if suffix and student in models else model


def is_base_of(model: str, models: Iterable[str]) -> bool:
    """Whether the model is a student among `models` before distillation."""
    return split_name(model)[1] == BASE and get_owner(model, models) != model


def order_categories(categories: Iterable[str]) -> list[str]:
    """Categories in order of first appearance, the pooled one last."""
    return sorted(dict.fromkeys(categories), key=lambda category: category == POOLED)


def read_metrics(path: str | PathLike[str]) -> list[Score]:
    """Read one metrics file; model and category come from its path `…/{model}/{category}.metrics.json`.

    Raises:
        InputError: the path has another form, the file is not a metrics file, or no group declares one of its metrics.
    """
    path = Path(path)
    model, category = path.parent.name, path.name.removesuffix(SUFFIX)
    if not model or category in ("", path.name):
        raise InputError(f"{path}: expected a path that ends in MODEL/CATEGORY{SUFFIX}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = [
            Score(model, category, metric, content[metric], low, high, n)
            for metric, n in content["n"].items()
            for low, high in [content["intervals"][metric]]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a metrics file from score_predictions.py ({error!r})") from error
    declared = list_metrics()
    if unknown := [score.metric for score in scores if score.metric not in declared]:
        raise InputError(f"{path}: n: expected one of {', '.join(declared)}, found {unknown[0]}")
    return scores


def gather_scores(paths: Sequence[str | PathLike[str]]) -> list[Score]:
    """Read all metrics files; scores are sorted by model and category, see `order_models` and `order_categories`.

    Raises:
        InputError: a file is not a metrics file, or two files belong to one model and category.
    """
    scores: dict[tuple[str, str], list[Score]] = {}
    files: dict[tuple[str, str], str | PathLike[str]] = {}
    for path in paths:
        key = (Path(path).parent.name, Path(path).name.removesuffix(SUFFIX))
        if key in files:
            raise InputError(f"{path}: expected one file per model and category, found {files[key]} before")
        scores[key], files[key] = read_metrics(path), path
    models, categories = order_models(key[0] for key in files), order_categories(key[1] for key in files)
    keys = [(model, category) for model in models for category in categories]
    return [score for key in keys for score in scores.get(key, [])]


def write_scores(path: str | PathLike[str], scores: Iterable[Score]) -> int:
    """Write metrics.csv; returns the number of rows."""
    return write_rows(path, Score, scores)


def read_scores(path: str | PathLike[str]) -> list[Score]:
    """Read metrics.csv; see `read_rows` for errors."""
    return read_rows(path, Score)
