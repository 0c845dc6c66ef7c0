"""The score table: metrics files gathered into one long table, and the order of its models and categories."""

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from distill.common.errors import InputError
from distill.common.names import BASE, POOLED, TEACHER
from distill.common.replicas import drop_seed, is_replica
from distill.common.variants import split_name
from distill.evaluation.metrics import list_metrics
from distill.evaluation.tables import read_rows, write_rows

SUFFIXES = (".metrics.json", ".tasks.json")  # of scores on the test split, and on benchmark tasks


class Score(NamedTuple):
    """One row of metrics.csv; None is an empty cell: an undefined score, or one without an interval or spread.

    `seeds` is the number of replicas that the score is the mean of, 1 for a single model, and `seed_sd` the sample
    standard deviation of their scores.
    """

    model: str
    category: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    seeds: int = 1
    seed_sd: float | None = None


def order_models(models: Iterable[str]) -> list[str]:
    """The teacher, then the students in order of first appearance, each with its replicas, its `_base` and variants."""
    seen = list(dict.fromkeys(models))
    owners = {model: get_owner(model, seen) for model in seen}
    first: dict[str, int] = {}
    for position, model in enumerate(seen):
        first.setdefault(owners[model], position)

    def place(model: str) -> tuple[bool, int, int]:
        kinds = (model == owners[model], is_replica(model), is_base_of(model, seen))
        return model != TEACHER, first[owners[model]], kinds.index(True) if any(kinds) else len(kinds)

    return sorted(seen, key=place)


def get_owner(model: str, models: Iterable[str]) -> str:
    """The student that the model belongs to: as a replica, or as `_base` or variant of one of `models`; else itself.

    The owner of a replica need not be among `models`, since only means over replicas have its name.
    """
    student, suffix = split_name(model)
    owner = drop_seed(student)
    return owner if suffix is None or owner in map(drop_seed, models) else model


def is_base_of(model: str, models: Iterable[str]) -> bool:
    """Whether the model is a student among `models` before distillation."""
    return split_name(model)[1] == BASE and get_owner(model, models) != model


def order_categories(categories: Iterable[str]) -> list[str]:
    """Categories in order of first appearance, the pooled one last."""
    return sorted(dict.fromkeys(categories), key=lambda category: category == POOLED)


def split_path(path: str | PathLike[str]) -> tuple[str, str, str]:
    """Model, category and suffix of a metrics file `…/{model}/{category}.metrics.json` or `….tasks.json`.

    Raises:
        InputError: the path has another form.
    """
    path = Path(path)
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    model, category = path.parent.name, path.name.removesuffix(suffix)
    if not (model and category and suffix):
        raise InputError(
            f"{path}: expected a path that ends in {' or '.join(f'MODEL/CATEGORY{one}' for one in SUFFIXES)}"
        )
    return model, category, suffix


def read_metrics(path: str | PathLike[str]) -> list[Score]:
    """Read one metrics file; see `split_path`.

    Raises:
        InputError: the path has another form, the file is not a metrics file, or no group declares one of its metrics.
    """
    model, category, _ = split_path(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        seeds, spreads = content.get("seeds", 1), content.get("seed_sd", {})  # of replicas; see `score_replicas`
        scores = [
            Score(model, category, metric, content[metric], low, high, n, seeds, spreads.get(metric))
            for metric, n in content["n"].items()
            for low, high in [content["intervals"][metric]]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a metrics file from score_predictions.py ({error!r})") from error
    declared = list_metrics(content["n"])
    if unknown := [score.metric for score in scores if score.metric not in declared]:
        raise InputError(f"{path}: n: expected one of {', '.join(declared)}, found {unknown[0]}")
    return scores


def gather_scores(paths: Sequence[str | PathLike[str]]) -> list[Score]:
    """Read all metrics files; scores are sorted by model and category, see `order_models` and `order_categories`.

    The scores on benchmark tasks stand behind those on the test split.

    Raises:
        InputError: a file is not a metrics file, or two files of a kind belong to one model and category.
    """
    scores: dict[tuple[str, str], dict[str, list[Score]]] = {}
    files: dict[tuple[str, str, str], str | PathLike[str]] = {}
    for path in paths:
        model, category, suffix = key = split_path(path)
        if key in files:
            raise InputError(f"{path}: expected one file per model and category, found {files[key]} before")
        files[key] = path
        scores.setdefault((model, category), {})[suffix] = read_metrics(path)
    models, categories = order_models(key[0] for key in files), order_categories(key[1] for key in files)
    cells = [scores.get((model, category), {}) for model in models for category in categories]
    return [score for cell in cells for suffix in SUFFIXES for score in cell.get(suffix, [])]


def write_scores(path: str | PathLike[str], scores: Iterable[Score]) -> int:
    """Write metrics.csv; returns the number of rows."""
    return write_rows(path, Score, scores)


def read_scores(path: str | PathLike[str]) -> list[Score]:
    """Read metrics.csv; see `read_rows` for errors."""
    return read_rows(path, Score)
