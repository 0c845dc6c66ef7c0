"""Paired comparison of models: differences between scores on the same records, by a paired bootstrap.

A student with several seeds stands for the mean over its replicas.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from os import PathLike
from pathlib import Path

import numpy as np

from distill.common.errors import InputError
from distill.common.names import POOLED
from distill.common.progress import Progress
from distill.common.replicas import list_replicas
from distill.evaluation.bootstrap import Floats, Resampled, percentile_interval, resample_models
from distill.evaluation.comparison_table import Comparison
from distill.evaluation.metrics import list_metrics
from distill.evaluation.options import ScoringOptions
from distill.evaluation.prediction_files import check_same_records
from distill.evaluation.record_statistics import SUFFIX, RecordStatistics, pool, read_statistics
from distill.evaluation.score_table import order_categories
from distill.evaluation.scores import build_statistics
from distill.evaluation.seed_means import SeedMean, average_all

logger = logging.getLogger(__name__)

ROUNDING = 1e-12  # relative

Pair = tuple[str, str]
Files = dict[str, dict[str, str | PathLike[str]]]  # category to model to file
Counted = Mapping[str, Mapping[str, RecordStatistics]]  # by category and model
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


def combine_spreads(model: SeedMean, other: SeedMean) -> float | None:
    """The standard deviation over seeds of a difference; None if neither side has several seeds. See `Comparison`."""
    spreads = [mean.sd for mean in (model, other) if mean.sd is not None]
    return math.hypot(*spreads) if spreads else None


def sort_files(paths: Iterable[str | PathLike[str]], suffix: str = SUFFIX) -> Files:
    """Sort files by category and model, from their paths `…/{model}/{category}.statistics.npz`, keeping the order.

    Args:
        paths: the files.
        suffix: of their names.

    Raises:
        InputError: a path has another form, or two files belong to one model and category.
    """
    sorted_files: Files = {}
    for path in paths:
        name, model = Path(path).name, Path(path).absolute().parent.name
        if not name.endswith(suffix) or name == suffix:
            raise InputError(f"{path}: expected a path that ends in MODEL/CATEGORY{suffix}")
        files = sorted_files.setdefault(name.removesuffix(suffix), {})
        if model in files:
            raise InputError(f"{path}: expected one file per model and category, found {files[model]} before")
        files[model] = path
    return sorted_files


def load_models(files: Files, options: ScoringOptions, answer_key: str) -> dict[str, dict[str, RecordStatistics]]:
    """Load statistics by category and model; the records of a category have the same order in all models.

    With several categories, the category `all` pools their records.

    Args:
        files: from `sort_files`.
        options: metrics and tokenizer.
        answer_key: key of the value in an answer; empty without an answer format.

    Raises:
        InputError: a file is broken, a model lacks a category, or two models have different records.
    """
    models = list(dict.fromkeys(model for by_model in files.values() for model in by_model))
    loaded: dict[str, dict[str, RecordStatistics]] = {}
    for category, by_model in files.items():
        if missing := [model for model in models if model not in by_model]:
            raise InputError(f"{category}: expected statistics of {', '.join(models)}, found none of {missing[0]}")
        loaded[category] = {model: read_statistics(by_model[model], options, answer_key) for model in models}
        identities = {str(by_model[model]): counted.iterate_identities() for model, counted in loaded[category].items()}
        check_same_records({path: list(records) for path, records in identities.items()})
    if len(loaded) == 1:
        return loaded
    return loaded | {POOLED: {model: pool([by_model[model] for by_model in loaded.values()]) for model in models}}


def find_equal(counted: Mapping[str, RecordStatistics]) -> dict[str, str]:
    """Return for each model of a category the first one with equal statistics, which may be itself."""
    first_of: dict[str, str] = {}
    for model, own in counted.items():
        first_of[model] = next((other for other in first_of.values() if counted[other].equals(own)), model)
    return first_of


def score_models(
    counted: Mapping[str, RecordStatistics], first_of: Mapping[str, str], options: ScoringOptions, progress: Progress
) -> dict[str, Scores]:
    """Score all models of a category on the same resamples; those with equal statistics once.

    Args:
        counted: statistics by model.
        first_of: from `find_equal`.
        options: bootstrap.
        progress: see `resample_models`.
    """
    built = {model: build_statistics(counted[model]) for model in dict.fromkeys(first_of.values())}
    count = len(next(iter(counted.values())))
    scores = resample_models(built, count, options.bootstrap, options.seed, progress)
    return {model: scores[first] for model, first in first_of.items()}


def start_progress(counted: Counted, first_of: Mapping[str, Mapping[str, str]], resamples: int) -> Progress:
    """Return the progress of all categories, which counts the resamples of each distinct model.

    Args:
        counted: from `load_models`.
        first_of: from `find_equal`, by category.
        resamples: number of resamples.
    """
    distinct = {category: len(set(own.values())) for category, own in first_of.items()}
    records = {category: len(next(iter(by_model.values()))) for category, by_model in counted.items()}
    work = resamples * sum(distinct[category] * records[category] for category in counted)
    return Progress(resamples * sum(distinct.values()), "comparisons", unit="resamples", work=work)


def splits_equally(counted: Counted, model: str, other: str) -> bool:
    """Whether both models' tokenizers split every reference into the same number of tokens.

    Only then have means over tokens, such as perplexity, the same unit for both models.

    Args:
        counted: from `load_models`.
        model: name of a model.
        other: name of another model.
    """
    pairs = [(by_model[model].records, by_model[other].records) for by_model in counted.values()]
    name = "reference_tokens"
    return all(np.array_equal(one[name], two[name]) for one, two in pairs if name in one and name in two)


def select_compared(counted: Counted, model: str, other: str) -> set[str]:
    """Names of the metrics by which two models can be compared; see `Metric.is_per_token`."""
    models = list(next(iter(counted.values())))
    pairs = product(list_replicas(model, models), list_replicas(other, models))
    if all(splits_equally(counted, *pair) for pair in pairs):
        return set(list_metrics())
    compared = {name for name, metric in list_metrics().items() if not metric.is_per_token}
    left_out = ", ".join(sorted(list_metrics().keys() - compared))
    text = "%s:%s: their tokenizers split the references differently; not compared by means over tokens (%s)"
    logger.info(text, model, other, left_out)
    return compared


def compare_models(counted: Counted, pairs: Sequence[Pair], options: ScoringOptions) -> list[Comparison]:
    """Compare every pair in every category, for each metric that both models have and that `select_compared` selects.

    Each model is scored once per category, on the same resamples as the other models; a pair's row is the difference
    of these scores.

    Args:
        counted: from `load_models`.
        pairs: (model, other), in the order of the result; the name of a student stands for all of its replicas.
        options: bootstrap.

    Raises:
        InputError: a pair names a model without records.
    """
    models = list(next(iter(counted.values())))
    for model, other in pairs:
        if unknown := [name for name in (model, other) if not list_replicas(name, models)]:
            raise InputError(f"pair {model}:{other}: expected one of {', '.join(models)}, found {unknown[0]}")
    compared_by = {pair: select_compared(counted, *pair) for pair in pairs}
    first_of = {category: find_equal(by_model) for category, by_model in counted.items()}
    progress = start_progress(counted, first_of, options.bootstrap)
    rows = []
    for category in order_categories(counted):
        scores = score_models(counted[category], first_of[category], options, progress)
        for model, other in pairs:
            means, others = (
                average_all([scores[replica] for replica in list_replicas(name, models)]) for name in (model, other)
            )
            names = others.keys() & compared_by[model, other]
            rows += [
                compare_means(category, (model, other), metric, means[metric], others[metric])
                for metric in means
                if metric in names
            ]
    progress.close()
    return rows


def compare_means(category: str, pair: Pair, metric: str, mean: SeedMean, other: SeedMean) -> Comparison:
    """The row of one metric, from the means of both sides over their seeds; a single model is a mean over one."""
    difference, low, high, p_value = compare_metric(mean.score, other.score)
    spread = combine_spreads(mean, other) if difference is not None else None
    n = min(mean.score.n, other.score.n)
    return Comparison(category, *pair, metric, difference, low, high, p_value, n, mean.seeds, other.seeds, spread)
