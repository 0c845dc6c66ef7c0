"""Means of scores over training seeds, with their spread; the replicas are scored on the same resamples of records."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill.common.errors import InputError
from distill.common.replicas import drop_seed, is_replica
from distill.evaluation.bootstrap import Resampled, make_estimate, resample_models
from distill.evaluation.options import ScoringOptions
from distill.evaluation.prediction_files import check_same_records
from distill.evaluation.record_statistics import RecordStatistics
from distill.evaluation.scores import arrange_scores, build_statistics


class SeedMean(NamedTuple):
    """The mean of a score over replicas.

    Attributes:
        score: mean of the scores, and of their values in each resample. It is undefined (NaN) where a replica's is, and
            `n` is the smallest number of records.
        sd: sample standard deviation of the scores over the seeds, with seeds − 1 in the denominator; None for a single
            seed and for an undefined mean.
        seeds: number of replicas.
    """

    score: Resampled
    sd: float | None
    seeds: int


def average(scores: Sequence[Resampled]) -> SeedMean:
    """The mean over replicas of a score on the same resamples; at least one replica."""
    values = np.array([score.value for score in scores])
    resampled = np.mean([score.resampled for score in scores], axis=0)
    mean = Resampled(float(values.mean()), resampled, min(score.n for score in scores))
    has_spread = len(values) > 1 and bool(np.isfinite(values).all())
    return SeedMean(mean, float(values.std(ddof=1)) if has_spread else None, len(values))


def average_all(scores: Sequence[Mapping[str, Resampled]]) -> dict[str, SeedMean]:
    """The means over replicas of all scores that every replica has, by metric name."""
    shared = [name for name in scores[0] if all(name in other for other in scores)]
    return {name: average([replica[name] for replica in scores]) for name in shared}


def check_replicas(models: Sequence[str]) -> None:
    """Check that the models are replicas of one student.

    Raises:
        InputError: a name is not that of a replica, or two are replicas of different students.
    """
    for model in models:
        if not is_replica(model) or drop_seed(model) != drop_seed(models[0]):
            raise InputError(f"expected replicas NAME-seedN of one student, found {model} among {', '.join(models)}")


def score_replicas(replicas: Mapping[str, RecordStatistics], options: ScoringOptions) -> dict[str, Any]:
    """The content of a metrics file with the mean over the replicas of a student.

    `intervals` are those of the bootstrap over records, of the mean over these replicas; `seed_sd` is the spread over
    the seeds, and `seeds` the number of replicas.

    Args:
        replicas: statistics by name of the replica.
        options: as when the records were counted.

    Raises:
        InputError: the models are not replicas of one student, or have different records.
    """
    check_replicas(list(replicas))
    check_same_records({name: list(counted.iterate_identities()) for name, counted in replicas.items()})
    count = len(next(iter(replicas.values())))
    built = {name: build_statistics(counted) for name, counted in replicas.items()}
    means = average_all(list(resample_models(built, count, options.bootstrap, options.seed).values()))
    estimates = {name: make_estimate(mean.score) for name, mean in means.items()}
    return arrange_scores(estimates, {"records": count}) | {
        "seeds": len(replicas),
        "seed_sd": {name: mean.sd for name, mean in means.items()},
        "replicas": list(replicas),
    }
