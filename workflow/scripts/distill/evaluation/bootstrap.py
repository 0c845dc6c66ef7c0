"""Percentile bootstrap over records, vectorised: a resample is a row of weights, how often each record was drawn.

A statistic is a function of weights (resamples, records) that returns one value per resample, (resamples,), NaN if the
resample leaves it undefined. Weights of 1 give the score of the records themselves, so that a score and its interval
come from the same code.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.common.progress import Progress

Floats = NDArray[np.float64]

LEVEL = 0.95
BLOCK_CELLS = 2_000_000  # weights in memory at a time: 16 MB in float64
MIN_DEFINED = 0.95  # share of the resamples in which a score must be defined; below it, the score has no interval


class Statistic(NamedTuple):
    """A function of the weights, and the number of records that it rests on."""

    function: Callable[[Floats], Floats]
    n: int


class Resampled(NamedTuple):
    """A score, its values in the resamples (resamples,), NaN where undefined, and the number of records."""

    value: float
    resampled: Floats
    n: int


class Estimate(NamedTuple):
    """A score, the ends of its 95 % interval and the number of records; None for an undefined score or interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def draw_weights(records: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield the resamples in blocks.

    Args:
        records: number of records.
        resamples: number of resamples.
        seed: determines all resamples.

    Yields:
        Weights, (rows, records); each row sums to `records`.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK_CELLS // max(records, 1))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(0, records, size=(count, records))
        drawn += np.arange(count)[:, None] * records
        yield np.bincount(drawn.ravel(), minlength=count * records).reshape(count, records).astype(np.float64)


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """The central 95 % of the resampled values; None if the score is undefined in too many resamples."""
    defined = values[np.isfinite(values)]
    if len(values) == 0 or len(defined) < MIN_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resample_models(
    models: Mapping[str, Mapping[str, Statistic]],
    records: int,
    resamples: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, dict[str, Resampled]]:
    """Every score of several models, by model and metric, with its values in the same resamples, drawn once.

    Args:
        models: statistics of each model, by metric.
        records: number of records of each model, at least 1.
        resamples: number of resamples; 0 gives scores without resampled values.
        seed: seed of the resamples.
        progress: counts the resamples of each model, with their records as their work; by default that of these models.
    """
    whole = np.ones((1, records))
    blocks: dict[tuple[str, str], list[Floats]] = {(model, name): [] for model in models for name in models[model]}
    if progress is None:
        total = len(models) * resamples
        progress = Progress(total, "bootstrap", unit="resamples", work=total * records)
        with closing(progress):
            return resample_models(models, records, resamples, seed, progress)
    with np.errstate(all="ignore"):  # an undefined score is NaN
        values = {(model, name): float(models[model][name].function(whole)[0]) for model, name in blocks}
        for weights in draw_weights(records, resamples, seed):
            for model, statistics in models.items():
                for name, statistic in statistics.items():
                    blocks[model, name].append(statistic.function(weights))
                progress.add(len(weights), work=weights.size)

    def gather(model: str, name: str) -> Resampled:
        resampled = np.concatenate([np.empty(0), *blocks[model, name]])
        return Resampled(values[model, name], resampled, models[model][name].n)

    return {model: {name: gather(model, name) for name in statistics} for model, statistics in models.items()}


def resample_all(statistics: Mapping[str, Statistic], records: int, resamples: int, seed: int) -> dict[str, Resampled]:
    """As `resample_models`, for one model."""
    return resample_models({"": statistics}, records, resamples, seed)[""]


def estimate_all(statistics: Mapping[str, Statistic], records: int, resamples: int, seed: int) -> dict[str, Estimate]:
    """Every score with its 95 % percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    The resampled unit is the record, even for a statistic that rests on some records only. All statistics see the same
    resamples, and so do two models that are scored on the same records with the same seed.

    Args:
        statistics: functions of weights (resamples, records), and the number of records that each rests on.
        records: number of records, at least 1.
        resamples: number of resamples; 0 gives scores without intervals.
        seed: seed of the resamples.
    """
    scores = resample_all(statistics, records, resamples, seed)
    return {name: make_estimate(score) for name, score in scores.items()}


def make_estimate(score: Resampled) -> Estimate:
    """The score with its 95 % percentile interval, if it is defined."""
    if not np.isfinite(score.value):
        return Estimate(None, None, None, score.n)
    # Resamples of a single record are all alike: an interval would have no width.
    low, high = (percentile_interval(score.resampled) if score.n > 1 else None) or (None, None)
    return Estimate(score.value, low, high, score.n)
