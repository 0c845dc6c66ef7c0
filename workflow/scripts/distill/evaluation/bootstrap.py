"""Percentile bootstrap over records, vectorised: a resample is a row of weights, how often each record was drawn.

A statistic is a function of such weights, shape (resamples, records), that returns one value a resample, shape
(resamples,), NaN where the resample leaves it undefined. With all weights 1 it gives the figure itself, so that the
figure and its interval come from the same code.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
BLOCK_CELLS = 2_000_000  # weights held at once: 16 MB in float64
LEAST_DEFINED = 0.95  # share of the resamples in which a figure must exist for its interval to be given


class Statistic(NamedTuple):
    """A function of the weights and the number of records that it rests on."""

    function: Callable[[Floats], Floats]
    n: int


class Resampled(NamedTuple):
    """A figure, its values in the resamples (resamples,), NaN where undefined, and its number of records."""

    value: float
    resampled: Floats
    n: int


class Estimate(NamedTuple):
    """A figure, the ends of its 95 % interval and its number of records; None where there is nothing to give."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def draw_weights(records: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield the resamples in blocks of shape (rows, records); each row sums to `records`. A seed fixes them all."""
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK_CELLS // max(records, 1))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(0, records, size=(count, records))
        drawn += np.arange(count)[:, None] * records
        yield np.bincount(drawn.ravel(), minlength=count * records).reshape(count, records).astype(np.float64)


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """The central 95 % of the resampled values; None where too many resamples leave the figure undefined."""
    defined = values[np.isfinite(values)]
    if len(values) == 0 or len(defined) < LEAST_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resample_all(statistics: Mapping[str, Statistic], records: int, resamples: int, seed: int) -> dict[str, Resampled]:
    """Every statistic's figure, and its values in the resamples; arguments as of `estimate_all`."""
    with np.errstate(all="ignore"):  # an undefined figure is NaN
        values = {name: float(s.function(np.ones((1, records)))[0]) for name, s in statistics.items()}
        resampled: dict[str, list[Floats]] = {name: [] for name in statistics}
        for weights in draw_weights(records, resamples, seed):
            for name, statistic in statistics.items():
                resampled[name].append(statistic.function(weights))
    return {
        name: Resampled(values[name], np.concatenate([np.empty(0), *resampled[name]]), statistic.n)
        for name, statistic in statistics.items()
    }


def estimate_all(statistics: Mapping[str, Statistic], records: int, resamples: int, seed: int) -> dict[str, Estimate]:
    """Every statistic with its 95 % percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    The resampled unit is the record, also for a statistic that rests on some of them only. All statistics see the same
    resamples, and so do two models scored on the same records with the same seed.

    Args:
        statistics: functions of weights (resamples, records), with the number of records each rests on.
        records: how many records there are, at least 1.
        resamples: 0 gives figures without intervals.
        seed: of the resamples.
    """
    estimates = {}
    for name, found in resample_all(statistics, records, resamples, seed).items():
        if not np.isfinite(found.value):
            estimates[name] = Estimate(None, None, None, found.n)
            continue
        # One record, drawn again and again, has no spread to show.
        interval = percentile_interval(found.resampled) if found.n > 1 else None
        low, high = interval or (None, None)
        estimates[name] = Estimate(found.value, low, high, found.n)
    return estimates
