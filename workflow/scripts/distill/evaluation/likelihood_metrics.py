"""The groups `ppl` and `fdistill`, from measured likelihoods; metrics whose likelihoods are missing are left out."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from distill.evaluation.bootstrap import Statistic
from distill.evaluation.formulas import bits_per_byte, perplexity, ratio_of_sums
from distill.evaluation.metrics import Columns
from distill.evaluation.prediction_files import LIKELIHOOD_FIELDS, has_likelihoods, is_judged

Records = Sequence[dict[str, Any]]


def collect(records: Records, fields: Iterable[str]) -> Columns:
    """These fields of all records as columns."""
    return {field: np.array([record[field] for record in records], dtype=np.float64) for field in fields}


def build_perplexity(columns: Columns, prefix: str = "") -> Statistic:
    """Perplexity from the columns `nll` and `nll_tokens`, with a prefix."""
    nll, tokens = columns[f"{prefix}nll"], columns[f"{prefix}nll_tokens"]
    return Statistic(partial(perplexity, nll=nll, tokens=tokens), len(nll))


def count_ppl(records: Records, tokenize: str) -> Columns:
    """Likelihood of each reference under the model, and the bytes of its text; nothing if one was not measured."""
    if not has_likelihoods(records):
        return {}
    lengths = np.array([len(record["reference"].encode()) for record in records], dtype=np.float64)
    return collect(records, LIKELIHOOD_FIELDS) | {"bytes": lengths}


def build_ppl(columns: Columns) -> dict[str, Statistic]:
    """Perplexity and bits per byte of the references, and the share of their tokens that the model ranks first."""
    if not columns:
        return {}
    nll, hits, tokens = columns["nll"], columns["nll_hits"], columns["nll_tokens"]
    return {
        "ppl": build_perplexity(columns),
        "bits_per_byte": Statistic(partial(bits_per_byte, nll=nll, lengths=columns["bytes"]), len(nll)),
        "agreement": Statistic(partial(ratio_of_sums, numerators=hits, denominators=tokens), len(nll)),
    }


def count_fdistill(records: Records, tokenize: str) -> Columns:
    """Likelihood of each reference under the model and of each answer under the teacher, where they were measured."""
    columns = collect(records, ["nll", "nll_tokens"]) if has_likelihoods(records) else {}
    return columns | (collect(records, ["teacher_nll", "teacher_nll_tokens"]) if is_judged(records) else {})


def build_fdistill(columns: Columns) -> dict[str, Statistic]:
    """Likelihood and coverage as in f-DISTILL (arXiv 2307.15190), as perplexities.

    `fdistill_likelihood` is the model's perplexity of the teacher's answers; `fdistill_coverage` is the teacher's
    perplexity of the model's answers.
    """
    prefixes = {"fdistill_likelihood": "", "fdistill_coverage": "teacher_"}
    return {name: build_perplexity(columns, prefix) for name, prefix in prefixes.items() if f"{prefix}nll" in columns}
