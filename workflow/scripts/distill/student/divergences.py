"""Divergences between the distributions of teacher and student, in log space: pure functions, and their registry.

To add a method, write its function and its entry in METHODS, and an independent formula in
tests/helpers/divergence_formulas.py; then run write_config_reference.py. Tests keep the three consistent.

The workflow reads METHODS when it parses the configuration, so importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Divergence(NamedTuple):
    """D(p, q) row by row, with its derivative.

    Attributes:
        value: (rows,) D in nats.
        slope: (rows, n) derivative of D with respect to log q, up to a multiple of q: adding c·q changes no gradient
            with respect to the logits.
        total: (rows, 1) sum of `slope` over n. The gradient with respect to the logits is `slope - total * q`.
    """

    value: Tensor
    slope: Tensor
    total: Tensor


@dataclass(frozen=True)
class Method:
    """A training method, the value of `method`.

    Attributes:
        description: what characterises the method, as one plain sentence.
        formula: the divergence of the teacher's distribution p and the student's q, as text.
        paper: where the method is from.
        divergence: computes D from (rows, n) log-probabilities p and q, and from the method's own options as keyword
            arguments; None for cross-entropy alone.
        options: names of the options that only this method uses; each is a field of `Objective`.
    """

    description: str
    formula: str
    paper: str
    divergence: Callable[..., Divergence] | None = None
    options: tuple[str, ...] = ()

    @property
    def details(self) -> str:
        """Formula and paper, for the configuration reference."""
        return f"{self.formula} ({self.paper})."

    @property
    def needs_teacher(self) -> bool:
        """Whether training reads the teacher's distribution, not just its answers."""
        return self.divergence is not None


def forward_kl(p: Tensor, q: Tensor) -> Divergence:
    """KL(p‖q)."""
    slope = p.exp().neg_()
    return Divergence(slope.mul(q - p).sum(-1), slope, slope.sum(-1, keepdim=True))


def reverse_kl(p: Tensor, q: Tensor) -> Divergence:
    """KL(q‖p)."""
    slope = q.exp().mul_(q - p)
    value = slope.sum(-1)
    return Divergence(value, slope, value[:, None])


def jsd(p: Tensor, q: Tensor, beta: float) -> Divergence:
    """Generalised Jensen-Shannon divergence β·KL(p‖m) + (1−β)·KL(q‖m) with the mixture m = βp + (1−β)q."""
    mixture = (p + math.log(beta)).logaddexp(q + math.log1p(-beta))
    slope = q.exp().mul_(q - mixture).mul_(1 - beta)
    student_part = slope.sum(-1)
    value = p.exp().mul_(p - mixture).sum(-1).mul_(beta) + student_part
    return Divergence(value, slope, student_part[:, None])


def tvd(p: Tensor, q: Tensor) -> Divergence:
    """Total variation distance ½ Σ|p − q|."""
    q_exp = q.exp()
    difference = q_exp - p.exp()
    slope = q_exp.mul_(difference.sign()).mul_(0.5)
    return Divergence(difference.abs_().sum(-1).mul_(0.5), slope, slope.sum(-1, keepdim=True))


METHODS: dict[str, Method] = {
    "seqkd": Method(
        description="Cross-entropy on the teacher's answers, without its distribution.",
        formula="No divergence",
        paper="Kim and Rush 2016, arXiv 1606.07947",
    ),
    "forward_kl": Method(
        description="Forward KL divergence; the student covers everything that the teacher might say.",
        formula="KL(p‖q)",
        paper="Hinton et al. 2015, arXiv 1503.02531",
        divergence=forward_kl,
    ),
    "reverse_kl": Method(
        description="Reverse KL divergence; the student keeps to what the teacher finds likely. "
        "Best with `on_policy_fraction`.",
        formula="KL(q‖p)",
        paper="MiniLLM, arXiv 2306.08543",
        divergence=reverse_kl,
    ),
    "jsd": Method(
        description="Jensen-Shannon divergence, between forward and reverse KL; `beta` weights the teacher.",
        formula="β·KL(p‖m) + (1−β)·KL(q‖m), m = βp + (1−β)q",
        paper="GKD, arXiv 2306.13649",
        divergence=jsd,
        options=("beta",),
    ),
    "tvd": Method(
        description="Total variation distance; bounded, so that no single token dominates the loss.",
        formula="½ Σ|p − q|",
        paper="f-distill, ACL 2023, arXiv 2307.15190",
        divergence=tvd,
    ),
}
