"""The group `pairwise`: scores from a judge's verdicts on the answers of two models."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from distill.evaluation.bootstrap import Statistic
from distill.evaluation.formulas import weighted_mean
from distill.evaluation.metrics import Columns

Records = Sequence[dict[str, Any]]


def count_pairwise(records: Records, tokenize: str) -> Columns:
    """Score, contradiction and share of unreadable verdicts of each record, NaN without; nothing without verdicts."""
    if any("pairwise" not in record for record in records):
        return {}
    found = [record["pairwise"] for record in records]
    asked = [one is not None and bool(one["verdicts"]) for one in found]
    unreadable = [
        np.mean([verdict["verdict"] is None for verdict in one["verdicts"]]) if has else None
        for one, has in zip(found, asked, strict=True)
    ]
    columns = {
        "score": [None if one is None else one["score"] for one in found],
        "contradictory": [None if one is None else one["is_contradictory"] for one in found],
        "unreadable": unreadable,
    }
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def build_pairwise(columns: Columns) -> dict[str, Statistic]:
    """Means over the judged records: of the score over those with two readable verdicts or identical answers.

    Contradictions count among records with two readable verdicts, unreadable verdicts among all that were asked for.
    """
    names = {
        "pairwise_win_rate": "score",
        "pairwise_contradictory": "contradictory",
        "pairwise_unreadable": "unreadable",
    }
    return {
        metric: Statistic(partial(weighted_mean, values=columns[name]), int((~np.isnan(columns[name])).sum()))
        for metric, name in names.items()
        if name in columns
    }
