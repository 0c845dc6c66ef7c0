"""The group `answer`: coverage, and errors of the values in usable answers against the labels."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from distill.evaluation.bootstrap import Statistic
from distill.evaluation.formulas import r_squared, root_mean_square, spearman, weighted_mean
from distill.evaluation.metrics import Columns


def count_values(records: Sequence[dict[str, Any]], tokenize: str) -> Columns:
    """Whether answers are usable, and predicted and true values; NaN unless a usable answer has a value and a label."""
    scored = [r["usable"] and r["parsed_value"] is not None and r["label"] is not None for r in records]
    values = {
        name: [r[field] if has else math.nan for r, has in zip(records, scored, strict=True)]
        for name, field in (("predicted", "parsed_value"), ("true", "label"))
    }
    columns = {"usable": [record["usable"] for record in records]} | values
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def build_values(columns: Columns) -> dict[str, Statistic]:
    """Coverage over all records, and errors over records with a usable value and a label.

    Direction accuracy compares signs. A label of 0 has no sign and is left out; a predicted 0 is wrong for any other
    label.
    """
    usable, predicted, true = (columns[name] for name in ("usable", "predicted", "true"))
    scored = int((~np.isnan(true)).sum())
    same_sign = np.where(np.isnan(true) | (true == 0), np.nan, np.sign(predicted) == np.sign(true))
    return {
        "coverage": Statistic(partial(weighted_mean, values=usable), len(usable)),
        "mae": Statistic(partial(weighted_mean, values=np.abs(predicted - true)), scored),
        "rmse": Statistic(partial(root_mean_square, errors=predicted - true), scored),
        "r2": Statistic(partial(r_squared, predicted=predicted, true=true), scored),
        "ic": Statistic(partial(spearman, predicted=predicted, true=true), scored),
        "direction_accuracy": Statistic(partial(weighted_mean, values=same_sign), int((~np.isnan(same_sign)).sum())),
    }
