"""Paired comparison of models: the difference of two models' scores on the same records, by a paired bootstrap."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from distill.common.errors import InputError
from distill.common.names import POOLED
from distill.evaluation.bootstrap import Floats, Resampled, percentile_interval, resample_all
from distill.evaluation.comparison_table import Comparison
from distill.evaluation.prediction_files import add_judgements, check_same_records, load_predictions
from distill.evaluation.score_table import order_categories
from distill.evaluation.scores import build_statistics

SUFFIX = ".predictions.jsonl"
ROUNDING = 1e-12  # relative

Pair = tuple[str, str]
Record = dict[str, Any]
Files = dict[str, dict[str, str | PathLike[str]]]  # category to model to file


class Scoring(NamedTuple):
    """What is computed of each model: options of score_predictions.py."""

    metrics: Sequence[str]
    answer_key: str
    tokenize: str
    resamples: int
    seed: int


def two_sided_p(differences: Floats, difference: float) -> float:
    """Two-sided p-value of the hypothesis that the true difference is 0.

    p = (1 + #{|d* − d| ≥ |d|}) / (1 + R), with d the difference, d* that of a resample and R their number: the
    resamples, moved so that their centre is 0, are what would be seen were there no difference (Efron and Tibshirani
    1993, chapter 16; Koehn 2004 for scores of whole corpora). It is never 0, and 1 for two models that answer alike.

    Args:
        differences: d*, (resamples,), finite.
        difference: d.
    """
    least = abs(difference) * (1 - ROUNDING)  # a d* of 0 lies |d| from d
    count = int((np.abs(differences - difference) >= least).sum())
    return (1 + count) / (1 + len(differences))


def subtract(first: Floats, second: Floats) -> Floats:
    """first − second, 0 where only rounding is left of it: no interval shall leave out 0 by that."""
    difference = first - second
    return np.where(np.abs(difference) <= ROUNDING * np.maximum(np.abs(first), np.abs(second)), 0.0, difference)


def compare_metric(model: Resampled, other: Resampled) -> tuple[float | None, float | None, float | None, float | None]:
    """(difference, ends of its 95 % percentile interval, p-value) of one metric, model − other.

    Args:
        model: figure and values of the first model; see `resample_all`.
        other: of the second, on the same resamples of the same records.
    """
    difference = float(subtract(np.array(model.value), np.array(other.value)))
    if not np.isfinite(difference):
        return None, None, None, None
    resampled = subtract(model.resampled, other.resampled)
    interval = percentile_interval(resampled) if min(model.n, other.n) > 1 else None
    if interval is None:
        return difference, None, None, None
    return difference, *interval, two_sided_p(resampled[np.isfinite(resampled)], difference)


def sort_files(paths: Iterable[str | PathLike[str]]) -> Files:
    """Files by category and model, from their paths `…/{model}/{category}.predictions.jsonl`, in their order.

    Raises:
        InputError: another path, or two for one model and category.
    """
    found: Files = {}
    for path in paths:
        name, model = Path(path).name, Path(path).absolute().parent.name
        if not name.endswith(SUFFIX) or name == SUFFIX:
            raise InputError(f"{path}: expected a path that ends in MODEL/CATEGORY{SUFFIX}")
        files = found.setdefault(name.removesuffix(SUFFIX), {})
        if model in files:
            raise InputError(f"{path}: model and category are those of {files[model]}")
        files[model] = path
    return found


def load_models(
    files: Files, judged: Sequence[str | PathLike[str]], metrics: Sequence[str]
) -> dict[str, dict[str, list[Record]]]:
    """Records by category and model, those of a category in the same order for all models; `all` pools them.

    Args:
        files: of `sort_files`.
        judged: files of judge_answers.py, which `fdistill` needs; may be none.
        metrics: groups of scores.

    Raises:
        InputError: a broken record, a model that lacks a category, or records that are not those of the others.
    """
    models = list(dict.fromkeys(model for of_category in files.values() for model in of_category))
    loaded: dict[str, dict[str, list[Record]]] = {}
    for category, of_category in files.items():
        if lacking := [model for model in models if model not in of_category]:
            raise InputError(f"{category}: expected predictions of {', '.join(models)}, found none of {lacking[0]}")
        loaded[category] = {model: load_predictions([of_category[model]], metrics) for model in models}
        check_same_records({str(of_category[model]): records for model, records in loaded[category].items()})
    pooled = {model: [record for category in sorted(files) for record in loaded[category][model]] for model in models}
    for model in models if judged else []:
        add_judgements(pooled[model], model, judged)  # the records of its categories are the same objects
    return loaded | {POOLED: pooled}


def score_once(
    records: Sequence[Record], scoring: Scoring, kept: list[tuple[Sequence[Record], dict[str, Resampled]]]
) -> dict[str, Resampled]:
    """A model's scores and their resamples, those in `kept` for records that were scored before, as a shared `_base`'s.

    Args:
        records: one model's, at least one.
        scoring: metrics and bootstrap.
        kept: records and their scores; those found are added.
    """
    for known, scores in kept:
        if known == records:
            return scores
    statistics = build_statistics(records, scoring.metrics, scoring.answer_key, BLEU(tokenize=scoring.tokenize))
    scores = resample_all(statistics, len(records), scoring.resamples, scoring.seed)
    kept.append((records, scores))
    return scores


def compare_models(
    records: Mapping[str, Mapping[str, Sequence[Record]]], pairs: Sequence[Pair], scoring: Scoring
) -> list[Comparison]:
    """Every pair in every category, metric by metric, those that both models have.

    Each model is scored once a category on the same resamples as the others, and pairs are differences of these.

    Args:
        records: of `load_models`.
        pairs: (model, other), in the order of the result.
        scoring: metrics and bootstrap.

    Raises:
        InputError: a pair names a model that has no records.
    """
    rows = []
    kept: list[tuple[Sequence[Record], dict[str, Resampled]]] = []
    for category in order_categories(records):
        scores = {model: score_once(found, scoring, kept) for model, found in records[category].items()}
        for model, other in pairs:
            if unknown := [name for name in (model, other) if name not in scores]:
                raise InputError(f"pair {model}:{other}: expected one of {', '.join(scores)}, found {unknown[0]}")
            for metric in [name for name in scores[model] if name in scores[other]]:
                first, second = scores[model][metric], scores[other][metric]
                found = compare_metric(first, second)
                rows.append(Comparison(category, model, other, metric, *found, min(first.n, second.n)))
    return rows
