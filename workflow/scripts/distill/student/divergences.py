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


# Floor of Σ|p − q| as a divisor, for rows in which both distributions are equal.
NO_GAP = 1e-30


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
        options: names of the options that such methods alone use; each is a field of `ObjectiveOptions`.
        is_linear: whether the gradient with respect to the student's logits is linear in p, so that it has the right
            expectation where unlikely tokens are sampled (`tail_samples`).
    """

    description: str
    formula: str
    paper: str
    divergence: Callable[..., Divergence] | None = None
    options: tuple[str, ...] = ()
    is_linear: bool = False

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


def skewed_kl(p: Tensor, q: Tensor, skew: float) -> Divergence:
    """KL(p‖m) with the mixture m = λp + (1−λ)q, λ = skew."""
    mixture = (p + math.log(skew)).logaddexp(q + math.log1p(-skew))
    value = p.exp().mul_(p - mixture).sum(-1)
    slope = (p + q).sub_(mixture).exp_().mul_(skew - 1)
    return Divergence(value, slope, slope.sum(-1, keepdim=True))


def skewed_reverse_kl(p: Tensor, q: Tensor, skew: float) -> Divergence:
    """KL(q‖m) with the mixture m = (1−λ)p + λq, λ = skew."""
    mixture = (p + math.log1p(-skew)).logaddexp(q + math.log(skew))
    q_exp, difference = q.exp(), q - mixture
    slope = q_exp * difference
    value = slope.sum(-1)
    slope.sub_(q_exp.mul_(difference.exp_()), alpha=skew)
    return Divergence(value, slope, slope.sum(-1, keepdim=True))


def adaptive_kl(p: Tensor, q: Tensor, head_mass: float) -> Divergence:
    """w·KL(p‖q) + (1−w)·KL(q‖p), where w is the share of the head in Σ|p − q|.

    The head is the smallest set of the teacher's most likely tokens that has at least the probability `head_mass`. As
    in the paper, w counts as a constant in the derivative.
    """
    ordered, order = p.exp().sort(-1, descending=True)
    gap = q.exp().gather(-1, order).sub_(ordered).abs_()
    is_head = ordered.cumsum(-1).sub_(ordered) < head_mass
    everywhere = gap.sum(-1, keepdim=True).clamp_(min=NO_GAP)
    weight = gap.mul_(is_head).sum(-1, keepdim=True).div_(everywhere)
    forward, reverse = forward_kl(p, q), reverse_kl(p, q)
    return Divergence(
        reverse.value.lerp(forward.value, weight[:, 0]),
        reverse.slope.lerp(forward.slope, weight),
        reverse.total.lerp(forward.total, weight),
    )


def alpha_beta(p: Tensor, q: Tensor, ab_alpha: float, ab_beta: float) -> Divergence:
    """Σ (a/(a+b)·pᵃ⁺ᵇ + b/(a+b)·qᵃ⁺ᵇ − pᵃ·qᵇ) / (a·b) with a = ab_alpha and b = ab_beta."""
    both = ab_alpha + ab_beta
    product = p.mul(ab_alpha).add_(q, alpha=ab_beta).exp_()
    q_power = q.mul(both).exp_()
    value = p.mul(both).exp_().mul_(ab_alpha / both).add_(q_power, alpha=ab_beta / both).sub_(product).sum(-1)
    slope = q_power.sub_(product).div_(ab_alpha)
    return Divergence(value.div_(ab_alpha * ab_beta), slope, slope.sum(-1, keepdim=True))


def engine(p: Tensor, q: Tensor) -> Divergence:
    """−Σ q·log p, the teacher's expected negative log-likelihood of the student's tokens."""
    slope = q.exp().mul_(p).neg_()
    value = slope.sum(-1)
    return Divergence(value, slope, value[:, None])


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
        is_linear=True,
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
    "skewed_kl": Method(
        description="Forward KL divergence to a mixture of the student with a share `skew` of the teacher; bounded "
        "where the student misses a token.",
        formula="KL(p‖λp + (1−λ)q)",
        paper="DistiLLM, arXiv 2402.03898",
        divergence=skewed_kl,
        options=("skew",),
    ),
    "skewed_reverse_kl": Method(
        description="Reverse KL divergence to a mixture of the teacher with a share `skew` of the student; bounded "
        "where the teacher excludes a token.",
        formula="KL(q‖(1−λ)p + λq)",
        paper="DistiLLM, arXiv 2402.03898",
        divergence=skewed_reverse_kl,
        options=("skew",),
    ),
    "adaptive_kl": Method(
        description="Forward and reverse KL divergence, weighted at each position by where the student is further off: "
        "at the teacher's most likely tokens (their share is `head_mass`) or at the others.",
        formula="w·KL(p‖q) + (1−w)·KL(q‖p), w = Σ_head |p − q| / Σ |p − q|",
        paper="AKL, arXiv 2404.02657",
        divergence=adaptive_kl,
        options=("head_mass",),
    ),
    "alpha_beta": Method(
        description="α-β divergence, a family that contains forward and reverse KL as limits; its exponents are "
        "`ab_alpha` and `ab_beta`.",
        formula="Σ (a/(a+b)·pᵃ⁺ᵇ + b/(a+b)·qᵃ⁺ᵇ − pᵃ·qᵇ) / (a·b)",
        paper="ABKD, arXiv 2505.04560",
        divergence=alpha_beta,
        options=("ab_alpha", "ab_beta"),
    ),
    "engine": Method(
        description="Expected negative log-likelihood of the student's tokens under the teacher: reverse KL divergence "
        "without the student's entropy. Alone it moves the student to the teacher's most likely token.",
        formula="−Σ q·log p",
        paper="ENGINE, arXiv 2005.00850; f-distill, arXiv 2307.15190",
        divergence=engine,
    ),
}
