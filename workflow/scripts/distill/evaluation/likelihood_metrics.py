"""The groups `ppl` and `fdistill`, from measured likelihoods; metrics whose likelihoods are missing are left out."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from distill.evaluation.bootstrap import Statistic
from distill.evaluation.formulas import bits_per_byte, perplexity, ratio_of_sums
from distill.evaluation.prediction_files import has_likelihoods, is_judged

Records = Sequence[dict[str, Any]]


def build_perplexity(records: Records, prefix: str = "") -> Statistic:
    """Perplexity from the fields `nll` and `nll_tokens` of each record, with a prefix."""
    nll, tokens = (
        np.array([record[prefix + field] for record in records], dtype=np.float64) for field in ("nll", "nll_tokens")
    )
    return Statistic(partial(perplexity, nll=nll, tokens=tokens), len(records))


def build_perplexity_statistics(records: Records) -> dict[str, Statistic]:
    """Perplexity and bits per byte of the references, and the share of their tokens that the model ranks first."""
    if not has_likelihoods(records):
        return {}
    nll, hits, tokens = (
        np.array([record[field] for record in records], dtype=np.float64) for field in ("nll", "nll_hits", "nll_tokens")
    )
    lengths = np.array([len(record["reference"].encode()) for record in records], dtype=np.float64)
    return {
        "ppl": build_perplexity(records),
        "bits_per_byte": Statistic(partial(bits_per_byte, nll=nll, lengths=lengths), len(records)),
        "agreement": Statistic(partial(ratio_of_sums, numerators=hits, denominators=tokens), len(records)),
    }


def build_fdistill_statistics(records: Records) -> dict[str, Statistic]:
    """Likelihood and coverage as in f-DISTILL (arXiv 2307.15190), as perplexities.

    `fdistill_likelihood` is the model's perplexity of the teacher's answers; `fdistill_coverage` is the teacher's
    perplexity of the model's answers.
    """
    statistics = {}
    if has_likelihoods(records):
        statistics["fdistill_likelihood"] = build_perplexity(records)
    if is_judged(records):
        statistics["fdistill_coverage"] = build_perplexity(records, "teacher_")
    return statistics
