"""The distillation objective on logits: pure functions that return the loss of some rows and its gradient.

A row is a completion position. Values are sums over rows; the caller divides by the completion tokens of the optimizer
step. `fused_loss` applies these functions to hidden states, block by block.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from distill.models.completions import Head
from distill.models.logits import IDENTITY, LogitTransform
from distill.student.aligned_loss import AlignedTeacher, aligned_divergence
from distill.student.divergences import METHODS, Divergence

# Clamp floor of a probability before its logarithm; smaller values are negligible.
MIN_PROBABILITY = torch.finfo(torch.float32).tiny


class Objective(NamedTuple):
    """alpha · τ² · D(teacher, student) + (1 − alpha) · cross-entropy (Hinton et al., arXiv 1503.02531).

    Attributes:
        method: key of METHODS, which defines D.
        temperature: τ, divides the logits of both models in D.
        alpha: weight of D; cross-entropy has weight 1 − alpha.
        parameters: the method's own options (`Method.options`) by name.
        vocabulary: number of token ids, from 0, that both tokenizers share. D compares the distributions over these
            ids, so padding ids of either vocabulary have probability 0. Cross-entropy is over the student's whole
            vocabulary. None: all ids are shared. With an `AlignedTeacher`, the student's own token ids.
        is_on_policy: whether the targets are the student's own samples, which have no cross-entropy term.
    """

    method: str = "seqkd"
    temperature: float = 1.0
    alpha: float = 0.5
    parameters: dict[str, float] = {}
    vocabulary: int | None = None
    is_on_policy: bool = False

    @property
    def kd_weight(self) -> float:
        """Weight of D in the loss."""
        return self.alpha * self.temperature**2 if METHODS[self.method].needs_teacher else 0.0

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy in the loss."""
        if not METHODS[self.method].needs_teacher:
            return 1.0
        return 0.0 if self.is_on_policy else 1.0 - self.alpha

    def compare(self, p: Tensor, q: Tensor) -> Divergence:
        """D between (rows, n) log-probabilities of teacher and student.

        Raises:
            ValueError: the method has no divergence.
        """
        method = METHODS[self.method]
        if method.divergence is None:
            raise ValueError(f"method {self.method!r} has no divergence")
        return method.divergence(p, q, **self.parameters)


class ExactTeacher(NamedTuple):
    """The teacher's hidden states of the student's rows.

    Attributes:
        rows: (rows, teacher's width).
        head: projects them.
        transform: what the teacher does to the logits after the head.
    """

    rows: Tensor
    head: Head
    transform: LogitTransform = IDENTITY


class TopKTeacher(NamedTuple):
    """The teacher's k most likely tokens at the objective's temperature; all other tokens form one more bucket.

    Attributes:
        ids: (rows, k) token ids, distinct within a row.
        logprobs: (rows, k) float32 log-probabilities, normalised over the teacher's whole vocabulary.
        log_tail: (rows,) float32 log-probability of all other tokens together.
    """

    ids: Tensor
    logprobs: Tensor
    log_tail: Tensor


class MixedTeacher(NamedTuple):
    """The hidden states of several teachers, each with a head of its own.

    Attributes:
        parts: for each teacher the (rows,) indices of its rows, and the teacher; every row belongs to one of them.
    """

    parts: tuple[tuple[Tensor, ExactTeacher], ...]


class SampledTeacher(NamedTuple):
    """The teacher's k most likely tokens, and a sample of all others; see `distill.teacher.tail_sampling`.

    Attributes:
        ids, logprobs, log_tail: as in TopKTeacher.
        tail_ids: (rows, samples) token ids outside the k, drawn from their own distribution; they may repeat.
        tail_entropy: (rows,) entropy of that distribution in nats.
    """

    ids: Tensor
    logprobs: Tensor
    log_tail: Tensor
    tail_ids: Tensor
    tail_entropy: Tensor


CachedTeacher = TopKTeacher | SampledTeacher
Teacher = ExactTeacher | CachedTeacher | AlignedTeacher | None
BlockTeacher = Tensor | CachedTeacher | AlignedTeacher | None  # the teacher's logits in place of its hidden states


class Terms(NamedTuple):
    """Sums over completion rows: scalars in float32, or in float64 for float64 rows. Only `loss` has a gradient.

    Attributes:
        loss: the objective.
        ce: cross-entropy in nats, unweighted.
        kd: divergence in nats, unweighted.
        ce_grad: squared norm of the gradient of the weighted cross-entropy with respect to the student's logits.
        kd_grad: the same for the weighted divergence.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    ce_grad: Tensor
    kd_grad: Tensor


def exact_divergence(logits: Tensor, teacher_logits: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """D over the whole shared vocabulary, and its gradient with respect to the student's logits.

    Args:
        logits: (rows, shared vocabulary).
        teacher_logits: (rows, shared vocabulary), overwritten.

    Returns:
        A scalar and (rows, shared vocabulary).
    """
    q = (logits / objective.temperature).log_softmax(dim=-1)
    p = teacher_logits.div_(objective.temperature).log_softmax(dim=-1)
    value, slope, total = objective.compare(p, q)
    return value.sum(), slope.addcmul_(q.exp_(), total, value=-1).div_(objective.temperature)


def topk_divergence(logits: Tensor, teacher: TopKTeacher, objective: Objective) -> tuple[Tensor, Tensor]:
    """Lower bound of `exact_divergence` over k + 1 buckets: the teacher's k most likely tokens, and all others.

    The last bucket penalises probability that the student puts outside the k tokens.
    """
    width = logits.shape[-1]
    is_shared = teacher.ids < width  # ids beyond are special tokens of the teacher alone
    ids = teacher.ids.long().clamp(max=width - 1)
    ids = torch.where(is_shared, ids, ids.gather(1, is_shared.int().argmax(-1, keepdim=True)))
    q = (logits / objective.temperature).softmax(dim=-1)
    top = q.gather(1, ids)
    # The tail is summed without the top tokens: 1 - top.sum() would cancel where the tail is small.
    rest = q.scatter_(1, ids, 0.0)
    tail = rest.sum(-1, keepdim=True).clamp_(min=MIN_PROBABILITY)
    p_top = teacher.logprobs.masked_fill(~is_shared, -math.inf)
    p = torch.cat([p_top, teacher.log_tail[:, None]], dim=-1).to(q.dtype).log_softmax(dim=-1)
    p = p.clamp(min=math.log(MIN_PROBABILITY))
    log_q = torch.cat([top.masked_fill(~is_shared, 0.0), tail], dim=-1).clamp_(min=MIN_PROBABILITY).log_()
    value, slope, total = objective.compare(p, log_q)
    gradient = rest.mul_(slope[:, -1:] / tail - total)
    gradient.scatter_add_(1, ids, (slope[:, :-1] - top * total).masked_fill(~is_shared, 0.0))
    return value.sum(), gradient.div_(objective.temperature)


def sampled_divergence(logits: Tensor, teacher: SampledTeacher, objective: Objective) -> tuple[Tensor, Tensor]:
    """Estimate of `exact_divergence` from the k most likely tokens and a sample of all others.

    Over the draws of the sample, value and gradient of `forward_kl` have the expectation of the exact ones. The value
    of a row may be negative. If the teacher has tokens that the student lacks, the probabilities of the others are
    normalised without them, by the share of them in the sample: the gradient is then consistent, not unbiased, and the
    value takes the entropy of the whole tail.
    """
    width, samples = logits.shape[-1], teacher.tail_ids.shape[-1]
    ids = torch.cat([teacher.ids, teacher.tail_ids], dim=-1).long()
    weights = (teacher.log_tail - math.log(samples))[:, None].expand(-1, samples)
    p = torch.cat([teacher.logprobs, weights], dim=-1).to(logits.dtype)
    p = p.masked_fill(ids >= width, -math.inf)  # special tokens of the teacher alone
    ids = ids.clamp(max=width - 1)
    log_shared = p.logsumexp(dim=-1, keepdim=True)
    p = (p - log_shared).clamp(min=math.log(MIN_PROBABILITY))
    log_q = (logits / objective.temperature).log_softmax(dim=-1)
    value, slope, total = objective.compare(p, log_q.gather(1, ids))
    # The value has the entropy of the sample, log(samples), in the place of the tail's.
    tail = (teacher.log_tail - log_shared[:, 0]).exp()
    value = value + tail * (math.log(samples) - teacher.tail_entropy.to(p.dtype))
    gradient = log_q.exp_().mul_(-total).scatter_add_(1, ids, slope)
    return value.sum(), gradient.div_(objective.temperature)


def compute_divergence(
    logits: Tensor, teacher: Tensor | CachedTeacher | AlignedTeacher, objective: Objective
) -> tuple[Tensor, Tensor]:
    """The unweighted divergence of a block, and the gradient of the weighted one; see `compute_terms`."""
    shared = logits[:, : objective.vocabulary]
    if isinstance(teacher, AlignedTeacher):
        kd, gradient = aligned_divergence(shared, teacher, objective)
    elif isinstance(teacher, TopKTeacher):
        kd, gradient = topk_divergence(shared, teacher, objective)
    elif isinstance(teacher, SampledTeacher):
        kd, gradient = sampled_divergence(shared, teacher, objective)
    else:
        kd, gradient = exact_divergence(shared, teacher.to(logits.dtype)[:, : objective.vocabulary], objective)
    return kd, gradient.mul_(objective.kd_weight)


def compute_terms(
    logits: Tensor, targets: Tensor, teacher: BlockTeacher, objective: Objective, needs_gradient: bool
) -> tuple[list[Tensor], Tensor | None]:
    """The `Terms` of a block of rows, and the gradient of their loss with respect to the logits.

    Args:
        logits: (rows, vocabulary) of the student, float32 or float64.
        targets: (rows,) token ids.
        teacher: logits, which may be overwritten, or top-k log-probabilities; None without a divergence.
        needs_gradient: False computes the values only.
    """
    zero = logits.new_zeros(())
    kd, ce_grad, kd_grad, kd_gradient = zero, zero, zero, None
    if teacher is not None:
        kd, kd_gradient = compute_divergence(logits, teacher, objective)
        kd_grad = torch.linalg.vector_norm(kd_gradient) ** 2
    gradient = logits.log_softmax(dim=-1)
    ce = -gradient.gather(1, targets[:, None]).sum()
    loss = objective.ce_weight * ce + objective.kd_weight * kd
    if not needs_gradient:
        return [loss, ce, kd, ce_grad, kd_grad], None
    if objective.ce_weight:
        gradient.exp_().scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=gradient.dtype))
        gradient.mul_(objective.ce_weight)
        ce_grad = torch.linalg.vector_norm(gradient) ** 2
    else:
        gradient.zero_()
    if kd_gradient is not None:
        gradient[:, : objective.vocabulary] += kd_gradient
    return [loss, ce, kd, ce_grad, kd_grad], gradient
