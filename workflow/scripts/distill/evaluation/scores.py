"""Scores of a model's records with confidence intervals: the content of a metrics file."""

import logging
from typing import Any

from distill.evaluation.bootstrap import Estimate, Statistic, estimate_all
from distill.evaluation.metrics import GROUPS
from distill.evaluation.options import ScoringOptions
from distill.evaluation.record_statistics import RecordStatistics

logger = logging.getLogger(__name__)


def build_statistics(counted: RecordStatistics) -> dict[str, Statistic]:
    """The statistics of all groups, by metric name, in the order of metrics.json.

    Raises:
        ValueError: a group builds a statistic that it does not declare.
    """
    statistics: dict[str, Statistic] = {}
    for name, columns in counted.groups.items():
        built = GROUPS[name].load().build(columns)
        declared = [metric.name for metric in GROUPS[name].metrics]
        if unknown := [metric for metric in built if metric not in declared]:
            raise ValueError(f"metric group {name}: expected one of {', '.join(declared)}, found {unknown[0]}")
        statistics |= built
    return statistics


def score(counted: RecordStatistics, options: ScoringOptions, answer_key: str) -> dict[str, Any]:
    """The content of a metrics file: one entry per metric, then intervals, n, counts and settings.

    Metrics whose likelihoods are missing are left out.

    Args:
        counted: from `count_statistics`, `read_statistics` or `pool`.
        options: as when the records were counted.
        answer_key: key of the value in an answer, or an empty text.
    """
    if counted.groups.get("ppl") == {}:
        logger.info("the predictions hold no likelihoods: perplexity is left out")
    if counted.groups.get("pairwise") == {}:
        logger.info("there are no verdicts of a judge: pairwise is left out")
    estimates = estimate_all(build_statistics(counted), len(counted), options.bootstrap, options.seed)
    signatures = {
        f"{name}_signature": describe(counted.tokenize)
        for name in counted.groups
        if (describe := GROUPS[name].load().describe)
    }
    return arrange_scores(estimates, count_records(counted)) | {
        "settings": {
            "answer_key": answer_key,
            "bleu_signature": None,
            **signatures,
            "bootstrap": options.bootstrap,
            "seed": options.seed,
        }
    }


def count_records(counted: RecordStatistics) -> dict[str, int]:
    """Numbers of all, usable, labelled and truncated records."""
    states = {name: int(counted.records[name].sum()) for name in ("usable", "with_label", "truncated")}
    return {"records": len(counted)} | states


def arrange_scores(estimates: dict[str, Estimate], counts: dict[str, int]) -> dict[str, Any]:
    """The estimates in the form of a metrics file: `metric: value`, then intervals, n and counts."""
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "n": {name: estimate.n for name, estimate in estimates.items()},
        "counts": counts,
    }
