"""Formulas of scores, vectorised over bootstrap resamples.

Every function takes weights of shape (resamples, records), which say how often each record was drawn, and returns one
value per resample, shape (resamples,).
"""

import numpy as np

from distill.evaluation.bootstrap import Floats

MIN_RECORDS = 3  # R² and a rank correlation of fewer records mean nothing
MIN_SPREAD = 1e-9  # relative; a smaller spread is rounding error


def weighted_mean(weights: Floats, values: Floats) -> Floats:
    """Mean of the values that are not NaN.

    Args:
        weights: (resamples, records).
        values: (records,), NaN for a record without a value.
    """
    present = ~np.isnan(values)
    return weights[:, present] @ values[present] / weights[:, present].sum(axis=1)


def root_mean_square(weights: Floats, errors: Floats) -> Floats:
    """Root mean square of the errors that are not NaN; shapes as in `weighted_mean`."""
    return np.sqrt(weighted_mean(weights, errors**2))


def ratio_of_sums(weights: Floats, numerators: Floats, denominators: Floats) -> Floats:
    """Sum of the numerators divided by the sum of the denominators, NaN for 0 / 0; shapes as in `weighted_mean`."""
    return (weights @ numerators) / (weights @ denominators)


def perplexity(weights: Floats, nll: Floats, tokens: Floats) -> Floats:
    """exp(sum of negative log-likelihoods / number of tokens): every token has the same weight.

    Args:
        weights: (resamples, records).
        nll: (records,), nats, summed over a record's tokens.
        tokens: (records,).
    """
    return np.exp(ratio_of_sums(weights, nll, tokens))


def bits_per_byte(weights: Floats, nll: Floats, lengths: Floats) -> Floats:
    """Negative log-likelihood in bits / bytes of the text, which does not depend on how a tokenizer splits the text.

    Args:
        weights: (resamples, records).
        nll: (records,), nats, summed over a record's tokens.
        lengths: (records,), bytes of a record's text in UTF-8.
    """
    return ratio_of_sums(weights, nll, lengths) / np.log(2)


def sum_of_squares(weights: Floats, values: Floats) -> Floats:
    """Sum of squared deviations from each resample's mean; NaN if the spread is only rounding error.

    Args:
        weights: (resamples, records).
        values: (records,) or (resamples, records).
    """
    count = weights.sum(axis=1)
    mean = (weights * values).sum(axis=1) / count
    total = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    scale = np.abs(values).max(initial=0.0)
    return np.where((count >= MIN_RECORDS) & (total > count * (MIN_SPREAD * scale) ** 2), total, np.nan)


def r_squared(weights: Floats, predicted: Floats, true: Floats) -> Floats:
    """1 − residual sum of squares / total sum of squares, over records with both values (NaN: no value)."""
    present = ~np.isnan(predicted) & ~np.isnan(true)
    weights, predicted, true = weights[:, present], predicted[present], true[present]
    return 1 - weights @ (true - predicted) ** 2 / sum_of_squares(weights, true)


def weighted_ranks(weights: Floats, values: Floats) -> Floats:
    """Rank of each record within each resample, from 1; ties share their mean rank.

    Args:
        weights: (resamples, records).
        values: (records,).

    Returns:
        Ranks, (resamples, records).
    """
    distinct, group = np.unique(values, return_inverse=True)
    starts = np.searchsorted(np.sort(group), np.arange(len(distinct)))
    in_group = np.add.reduceat(weights[:, np.argsort(group, kind="stable")], starts, axis=1)
    return (np.cumsum(in_group, axis=1) - (in_group - 1) / 2)[:, group]


def spearman(weights: Floats, predicted: Floats, true: Floats) -> Floats:
    """Spearman's rank correlation over records with both values; NaN if one side is constant."""
    present = ~np.isnan(predicted) & ~np.isnan(true)
    if not present.any():
        return np.full(len(weights), np.nan)
    weights = weights[:, present]
    first, second = weighted_ranks(weights, predicted[present]), weighted_ranks(weights, true[present])
    middle = (weights.sum(axis=1) + 1)[:, None] / 2
    product = (weights * (first - middle) * (second - middle)).sum(axis=1)
    return product / np.sqrt(sum_of_squares(weights, first) * sum_of_squares(weights, second))
