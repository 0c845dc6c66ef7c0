"""Scores of predictions with confidence intervals: the content of a metrics file."""

import logging
from collections.abc import Sequence
from typing import Any

from distill.common.errors import InputError
from distill.evaluation.bootstrap import Estimate, Statistic, estimate_all
from distill.evaluation.metrics import FILE_ORDER, GROUPS
from distill.evaluation.options import ScoringOptions
from distill.evaluation.prediction_files import has_likelihoods
from distill.evaluation.text_metrics import warn_of_chinese

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]


def select_groups(options: ScoringOptions, answer_key: str) -> list[str]:
    """Names of the groups to compute, in the order of metrics.json."""
    chosen = [
        name for name, group in GROUPS.items()
        if name in options.metrics and (answer_key or not group.needs_answer_key)
    ]  # fmt: skip
    return sorted(chosen, key=[*FILE_ORDER, *GROUPS].index)


def build_statistics(records: Records, options: ScoringOptions, answer_key: str) -> dict[str, Statistic]:
    """The statistics of all chosen groups, by metric name, in the order of metrics.json.

    Args:
        records: from `load_predictions`, at least one.
        options: `metrics` and `tokenize` matter here.
        answer_key: key of the value in an answer; without one, groups that need it are left out.

    Raises:
        ValueError: a group builds a statistic that it does not declare.
    """
    statistics: dict[str, Statistic] = {}
    for name in select_groups(options, answer_key):
        built = GROUPS[name].build(records, options.tokenize)
        declared = [metric.name for metric in GROUPS[name].metrics]
        if unknown := [metric for metric in built if metric not in declared]:
            raise ValueError(f"metric group {name}: expected one of {', '.join(declared)}, found {unknown[0]}")
        statistics |= built
    return statistics


def score_records(records: Records, options: ScoringOptions, answer_key: str) -> dict[str, Any]:
    """The content of a metrics file: one entry per metric, then intervals, n, counts and settings.

    Args:
        records: from `load_predictions`, at least one.
        options: groups of metrics, tokenizer and bootstrap. Metrics whose likelihoods are missing are left out.
        answer_key: key of the value in an answer; without one, groups that need it are left out.

    Raises:
        InputError: there are no records.
    """
    if not records:
        raise InputError("expected at least one prediction, found none")
    if "ppl" in options.metrics and not has_likelihoods(records):
        logger.info("the predictions hold no likelihoods: perplexity is left out")
    if "bleu" in options.metrics:
        warn_of_chinese(records, options.tokenize)
    statistics = build_statistics(records, options, answer_key)
    estimates = estimate_all(statistics, len(records), options.bootstrap, options.seed)
    signatures = {
        f"{name}_signature": describe(options.tokenize)
        for name in select_groups(options, answer_key)
        if (describe := GROUPS[name].describe)
    }
    return arrange_scores(estimates, count_records(records)) | {
        "settings": {
            "answer_key": answer_key,
            "bleu_signature": None,
            **signatures,
            "bootstrap": options.bootstrap,
            "seed": options.seed,
        }
    }


def count_records(records: Records) -> dict[str, int]:
    """Numbers of all, usable, labelled and truncated records."""
    return {
        "records": len(records),
        "usable": sum(record["usable"] for record in records),
        "with_label": sum(record["label"] is not None for record in records),
        "truncated": sum(record["finish_reason"] == "length" for record in records),
    }


def arrange_scores(estimates: dict[str, Estimate], counts: dict[str, int]) -> dict[str, Any]:
    """The estimates in the form of a metrics file: `metric: value`, then intervals, n and counts."""
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "n": {name: estimate.n for name, estimate in estimates.items()},
        "counts": counts,
    }
