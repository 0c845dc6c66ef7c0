"""Paired comparison of models: differences between scores on the same records, by a paired bootstrap."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from distill.common.errors import InputError
from distill.common.names import POOLED
from distill.evaluation.bootstrap import Floats, Resampled, percentile_interval, resample_all
from distill.evaluation.comparison_table import Comparison
from distill.evaluation.metrics import list_metrics, needs_likelihoods
from distill.evaluation.options import ScoringOptions
from distill.evaluation.prediction_files import add_judgements, check_same_records, load_predictions
from distill.evaluation.score_table import order_categories
from distill.evaluation.scores import build_statistics

logger = logging.getLogger(__name__)

SUFFIX = ".predictions.jsonl"
ROUNDING = 1e-12  # relative

Pair = tuple[str, str]
Record = dict[str, Any]
Files = dict[str, dict[str, str | PathLike[str]]]  # category to model to file
Scores = dict[str, Resampled]  # by metric


def two_sided_p(differences: Floats, difference: float) -> float:
    """Two-sided p-value of the hypothesis that the true difference is 0.

    p = (1 + #{|d* − d| ≥ |d|}) / (1 + R) for a difference d, its resamples d* and their number R. Shifted to have
    their centre at 0, the resamples show the differences to expect if the true one were 0 (Efron and Tibshirani 1993,
    chapter 16; Koehn 2004 for corpus scores). The p-value is never 0, and 1 for two models with the same answers.

    Args:
        differences: d*, (resamples,), finite.
        difference: d.
    """
    least = abs(difference) * (1 - ROUNDING)  # counts a d* of exactly 0 despite rounding
    count = int((np.abs(differences - difference) >= least).sum())
    return (1 + count) / (1 + len(differences))


def subtract(first: Floats, second: Floats) -> Floats:
    """first − second, and 0 for a mere rounding error, so that no interval excludes 0 because of rounding."""
    difference = first - second
    return np.where(np.abs(difference) <= ROUNDING * np.maximum(np.abs(first), np.abs(second)), 0.0, difference)


def compare_metric(model: Resampled, other: Resampled) -> tuple[float | None, float | None, float | None, float | None]:
    """Compare one metric of two models.

    Args:
        model: score of the first model; see `resample_all`.
        other: score of the second model, on the same resamples of the same records.

    Returns:
        Difference model − other, the ends of its 95 % percentile interval, and its p-value; None where undefined.
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
    """Sort files by category and model, from their paths `…/{model}/{category}.predictions.jsonl`, keeping the order.

    Raises:
        InputError: a path has another form, or two files belong to one model and category.
    """
    sorted_files: Files = {}
    for path in paths:
        name, model = Path(path).name, Path(path).absolute().parent.name
        if not name.endswith(SUFFIX) or name == SUFFIX:
            raise InputError(f"{path}: expected a path that ends in MODEL/CATEGORY{SUFFIX}")
        files = sorted_files.setdefault(name.removesuffix(SUFFIX), {})
        if model in files:
            raise InputError(f"{path}: expected one file per model and category, found {files[model]} before")
        files[model] = path
    return sorted_files


def load_models(
    files: Files, judged: Sequence[str | PathLike[str]], metrics: Sequence[str]
) -> dict[str, dict[str, list[Record]]]:
    """Load records by category and model; the records of a category have the same order in all models.

    The category `all` pools the records of all categories.

    Args:
        files: from `sort_files`.
        judged: files from judge_answers.py, for metrics that need the teacher's judgements; may be empty.
        metrics: names of metric groups.

    Raises:
        InputError: a record is broken, a model lacks a category, or two models have different records.
    """
    models = list(dict.fromkeys(model for by_model in files.values() for model in by_model))
    loaded: dict[str, dict[str, list[Record]]] = {}
    for category, by_model in files.items():
        if missing := [model for model in models if model not in by_model]:
            raise InputError(f"{category}: expected predictions of {', '.join(models)}, found none of {missing[0]}")
        loaded[category] = {model: load_predictions([by_model[model]], needs_likelihoods(metrics)) for model in models}
        check_same_records({str(by_model[model]): records for model, records in loaded[category].items()})
    pooled = {model: [record for category in sorted(files) for record in loaded[category][model]] for model in models}
    for model in models if judged else []:
        add_judgements(pooled[model], model, judged)  # the categories share these record objects
    return loaded | {POOLED: pooled}


def score_once(
    records: Sequence[Record],
    options: ScoringOptions,
    answer_key: str,
    scored: list[tuple[Sequence[Record], Scores]],
) -> Scores:
    """Score a model's records, or return the scores of equal records; students may share the answers of one `_base`.

    Args:
        records: one model's records, at least one.
        options: metrics and bootstrap.
        answer_key: key of the value in an answer; empty without an answer format.
        scored: records that were scored before, with their scores; new ones are appended.
    """
    for earlier, scores in scored:
        if earlier == records:
            return scores
    statistics = build_statistics(records, options, answer_key)
    scores = resample_all(statistics, len(records), options.bootstrap, options.seed)
    scored.append((records, scores))
    return scores


def splits_equally(records: Mapping[str, Mapping[str, Sequence[Record]]], model: str, other: str) -> bool:
    """Whether both models' tokenizers split every reference into the same number of tokens.

    Only then have means over tokens, such as perplexity, the same unit for both models.

    Args:
        records: from `load_models`.
        model: name of a model.
        other: name of another model.
    """
    return all(
        first.get("nll_tokens") == second.get("nll_tokens")
        for by_model in records.values()
        for first, second in zip(by_model[model], by_model[other], strict=True)
        if "nll_tokens" in first and "nll_tokens" in second
    )


def select_compared(records: Mapping[str, Mapping[str, Sequence[Record]]], model: str, other: str) -> set[str]:
    """Names of the metrics by which two models can be compared; see `Metric.is_per_token`."""
    if splits_equally(records, model, other):
        return set(list_metrics())
    compared = {name for name, metric in list_metrics().items() if not metric.is_per_token}
    left_out = ", ".join(sorted(list_metrics().keys() - compared))
    text = "%s:%s: their tokenizers split the references differently; not compared by means over tokens (%s)"
    logger.info(text, model, other, left_out)
    return compared


def compare_models(
    records: Mapping[str, Mapping[str, Sequence[Record]]],
    pairs: Sequence[Pair],
    options: ScoringOptions,
    answer_key: str,
) -> list[Comparison]:
    """Compare every pair in every category, for each metric that both models have and that `select_compared` selects.

    Each model is scored once per category, on the same resamples as the other models; a pair's row is the difference
    of these scores.

    Args:
        records: from `load_models`.
        pairs: (model, other), in the order of the result.
        options: metrics and bootstrap.
        answer_key: key of the value in an answer; empty without an answer format.

    Raises:
        InputError: a pair names a model without records.
    """
    models = list(next(iter(records.values())))
    for model, other in pairs:
        if unknown := [name for name in (model, other) if name not in models]:
            raise InputError(f"pair {model}:{other}: expected one of {', '.join(models)}, found {unknown[0]}")
    compared_by = {pair: select_compared(records, *pair) for pair in pairs}
    rows = []
    scored: list[tuple[Sequence[Record], Scores]] = []
    for category in order_categories(records):
        scores = {model: score_once(found, options, answer_key, scored) for model, found in records[category].items()}
        for model, other in pairs:
            names = scores[other].keys() & compared_by[model, other]
            for metric in [name for name in scores[model] if name in names]:
                first, second = scores[model][metric], scores[other][metric]
                compared = compare_metric(first, second)
                rows.append(Comparison(category, model, other, metric, *compared, min(first.n, second.n)))
    return rows
