"""The distillation loss on completion rows: a pure function of hidden states and heads.

No function here holds a (batch, length, vocabulary) tensor. A chunk of rows is projected to logits, reduced in float32
log space, and its gradients are taken at once, in the forward pass: nothing is kept of a chunk but its share of the
gradients of rows and head, so that nothing has to be projected a second time. Sums are over rows; who calls divides by
the completion tokens of the optimizer step.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.models.completions import Head, project
from distill.student.divergences import divergence

# Logits that are projected at a time, enough for a fast product of matrices, and of these the ones whose softmax is
# taken at a time, on a CPU few enough to stay in its caches.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**25}
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
LEAST_ROWS = 16  # of a chunk
LEAST = torch.finfo(torch.float32).tiny  # of a probability whose logarithm is taken


class Objective(NamedTuple):
    """alpha · τ² · D(teacher, student) + (1 − alpha) · cross-entropy (Hinton et al., arXiv 1503.02531).

    Attributes:
        method: D, `forward_kl`, `reverse_kl`, `jsd` or `tvd`; `seqkd` has none.
        temperature: τ, divides both models' logits in D.
        alpha: weight of D, 1 − alpha of cross-entropy.
        beta: weight of the teacher in the mixture of `jsd`, above 0 and below 1.
        vocabulary: ids from 0 that both tokenizers share; D is between the distributions over these, so that the
            padding of either vocabulary has no probability. Cross-entropy is over the student's own vocabulary. None:
            all.
        is_on_policy: the targets are the student's own samples, which cross-entropy has nothing to learn from.
    """

    method: str = "seqkd"
    temperature: float = 1.0
    alpha: float = 0.5
    beta: float = 0.5
    vocabulary: int | None = None
    is_on_policy: bool = False

    @property
    def kd_weight(self) -> float:
        """Of D in the loss."""
        return 0.0 if self.method == "seqkd" else self.alpha * self.temperature**2

    @property
    def ce_weight(self) -> float:
        """Of cross-entropy in the loss."""
        if self.method == "seqkd":
            return 1.0
        return 0.0 if self.is_on_policy else 1.0 - self.alpha


class ExactTeacher(NamedTuple):
    """(rows, teacher's width) hidden states for the student's rows, and the head that projects them to logits."""

    rows: Tensor
    head: Head


class TopKTeacher(NamedTuple):
    """The teacher's likeliest tokens at the objective's temperature, and the rest as one more bucket.

    Attributes:
        ids: (rows, k) token ids, each once a row.
        logprobs: (rows, k) float32 log-probabilities, normalised over the teacher's whole vocabulary.
        log_tail: (rows,) float32 logarithm of the probability of all other tokens.
    """

    ids: Tensor
    logprobs: Tensor
    log_tail: Tensor


Teacher = ExactTeacher | TopKTeacher | None


class Terms(NamedTuple):
    """Sums over completion rows, scalars in float32 (float64 for float64 rows); gradients flow through `loss` alone.

    Attributes:
        loss: weighted by the objective.
        ce: cross-entropy in nats.
        kd: the divergence, before its weight.
        ce_grad: squared norm of the gradient of cross-entropy's part of the loss by the student's logits.
        kd_grad: the same of the divergence's part.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    ce_grad: Tensor
    kd_grad: Tensor


def compare_all(logits: Tensor, teacher_logits: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """D over the whole shared vocabulary, and its gradient by the student's logits.

    Args:
        logits, teacher_logits: (rows, shared vocabulary).

    Returns:
        A scalar and (rows, shared vocabulary).
    """
    q = (logits / objective.temperature).log_softmax(dim=-1)
    p = teacher_logits.div_(objective.temperature).log_softmax(dim=-1)
    value, slope, total = divergence(objective.method, p, q, objective.beta)
    return value.sum(), slope.addcmul_(q.exp_(), total, value=-1).div_(objective.temperature)


def compare_buckets(logits: Tensor, teacher: TopKTeacher, objective: Objective) -> tuple[Tensor, Tensor]:
    """`compare_all` with the teacher's k likeliest tokens apart and all others together in one bucket.

    It is a lower bound of the exact one. Without the bucket nothing would hold down what the student finds elsewhere.
    """
    width = logits.shape[-1]
    is_known = teacher.ids < width  # the few others are special tokens that only the teacher has
    ids = teacher.ids.long().clamp(max=width - 1)
    ids = torch.where(is_known, ids, ids.gather(1, is_known.int().argmax(-1, keepdim=True)))
    q = (logits / objective.temperature).softmax(dim=-1)
    top = q.gather(1, ids)
    rest = q.scatter_(1, ids, 0.0)  # without those, so that a small tail is no difference of two large sums
    tail = rest.sum(-1, keepdim=True).clamp_(min=LEAST)
    least = math.log(LEAST)
    p_top = teacher.logprobs.masked_fill(~is_known, -math.inf)
    p = torch.cat([p_top, teacher.log_tail[:, None]], dim=-1).to(q.dtype).log_softmax(dim=-1).clamp(min=least)
    both = torch.cat([top.masked_fill(~is_known, 0.0), tail], dim=-1).clamp_(min=LEAST).log_()
    value, slope, total = divergence(objective.method, p, both, objective.beta)
    gradient = rest.mul_(slope[:, -1:] / tail - total)
    gradient.scatter_add_(1, ids, (slope[:, :-1] - top * total).masked_fill(~is_known, 0.0))
    return value.sum(), gradient.div_(objective.temperature)


def block_terms(
    logits: Tensor, targets: Tensor, teacher: Tensor | TopKTeacher | None, objective: Objective, needs_gradient: bool
) -> tuple[list[Tensor], Tensor | None]:
    """The five `Terms` of a block of rows, and the gradient of their loss by the logits.

    Args:
        logits: (rows, vocabulary) of the student, in float32 or float64.
        teacher: its logits, which are overwritten, or what is kept of them.
    """
    zero = logits.new_zeros(())
    kd, kd_grad, slope = zero, zero, None
    if teacher is not None:
        shared = logits[:, : objective.vocabulary]
        if isinstance(teacher, TopKTeacher):
            kd, slope = compare_buckets(shared, teacher, objective)
        else:
            kd, slope = compare_all(shared, teacher.to(logits.dtype)[:, : objective.vocabulary], objective)
        slope.mul_(objective.kd_weight)
        kd_grad = torch.linalg.vector_norm(slope) ** 2
    gradient = logits.log_softmax(dim=-1)
    ce = -gradient.gather(1, targets[:, None]).sum()
    ce_grad = zero
    loss = objective.ce_weight * ce + objective.kd_weight * kd
    if not needs_gradient:
        return [loss, ce, kd, ce_grad, kd_grad], None
    if objective.ce_weight:
        gradient.exp_().scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=gradient.dtype))
        gradient.mul_(objective.ce_weight)
        ce_grad = torch.linalg.vector_norm(gradient) ** 2
    else:
        gradient.zero_()
    if slope is not None:
        gradient[:, : objective.vocabulary] += slope
    return [loss, ce, kd, ce_grad, kd_grad], gradient


def is_plain(head: Head) -> bool:
    """Whether a head is a linear layer and nothing more.

    LoRA, quantized and soft-capping heads are more, and so is one that accelerate moves between devices.
    """
    return type(head) is torch.nn.Linear and not hasattr(head, "_hf_hook")


class Projection:
    """Chunks of rows to logits by a plain linear head, without autograd and into memory that is taken once.

    Args:
        dtype: of the product.
        chunk: most rows.
    """

    def __init__(self, head: torch.nn.Linear, dtype: torch.dtype, chunk: int):
        self.weight = head.weight.to(dtype)
        self.bias = head.bias.to(dtype) if head.bias is not None else None
        self.logits = self.weight.new_empty((chunk, len(self.weight)))

    def __call__(self, rows: Tensor) -> Tensor:
        """(rows, vocabulary), until the next call."""
        out = self.logits[: len(rows)]
        if self.bias is None:
            return torch.mm(rows.to(out.dtype), self.weight.T, out=out)
        return torch.addmm(self.bias, rows.to(out.dtype), self.weight.T, out=out)


def split_teacher(teacher: Teacher, chunk: int) -> Iterator[Tensor | TopKTeacher | None]:
    """The teacher's logits, or what is kept of them, for each chunk of rows; endless where there is no teacher."""
    if teacher is None:
        while True:
            yield None
    elif isinstance(teacher, TopKTeacher):
        for parts in zip(*(tensor.split(chunk) for tensor in teacher), strict=True):
            yield TopKTeacher(*parts)
    elif is_plain(teacher.head):
        head: Any = teacher.head
        projection = Projection(head, head.weight.dtype, min(chunk, len(teacher.rows)))
        yield from map(projection, teacher.rows.split(chunk))
    else:
        for part in teacher.rows.split(chunk):
            yield project(part, teacher.head)


def take_block(teacher: Tensor | TopKTeacher | None, block: slice) -> Tensor | TopKTeacher | None:
    """Some rows of a chunk's teacher."""
    if isinstance(teacher, TopKTeacher):
        return TopKTeacher(*(tensor[block] for tensor in teacher))
    return teacher[block] if teacher is not None else None


class FusedTerms(torch.autograd.Function):
    """`Terms` with the gradients of rows and head's weights, which the backward pass only scales."""

    @staticmethod
    def forward(ctx: Any, job: dict[str, Any], rows: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """See `distillation_loss`; `weights` are those of the head that gradients are wanted for."""
        head, dtype, chunk, needs_gradient = job["head"], job["dtype"], job["chunk"], job["needs_gradient"]
        exact = torch.promote_types(rows.dtype, torch.float32)
        projection = Projection(head, dtype, min(chunk, len(rows))) if is_plain(head) else None
        sums = torch.zeros(len(Terms._fields), device=rows.device, dtype=exact)
        of_rows = torch.empty_like(rows)
        of_weights = [torch.zeros_like(one, dtype=exact) for one in weights] if needs_gradient else []
        start = 0
        for part, targets, teacher in zip(
            rows.split(chunk), job["targets"].split(chunk), split_teacher(job["teacher"], chunk), strict=False
        ):
            if projection is not None:
                part = part.to(dtype)
                logits = gradient = projection(part)  # which the gradient takes the place of
            else:
                with torch.enable_grad(), torch.autocast(rows.device.type, dtype, enabled=job["is_autocast"]):
                    part = part.detach().requires_grad_()
                    logits = head(part)
                gradient = torch.empty_like(logits, requires_grad=False)
            for at in range(0, len(part), job["block"]):
                block = slice(at, at + job["block"])
                of_block = logits[block].detach().to(exact)
                terms, slope = block_terms(
                    of_block, targets[block], take_block(teacher, block), job["objective"], needs_gradient
                )
                sums += torch.stack(terms)
                if slope is not None:
                    gradient[block] = slope
            if not needs_gradient:
                continue
            into = of_rows[start : start + len(part)]
            start += len(part)
            if projection is not None:
                weight = projection.weight
                torch.mm(gradient, weight, out=into) if into.dtype == dtype else into.copy_(gradient @ weight)
                add_linear_gradients(of_weights, weights, head, gradient, part)
            else:
                found = torch.autograd.grad(logits, [part, *weights], gradient, allow_unused=True)
                into.copy_(found[0])
                for total, one in zip(of_weights, found[1:], strict=True):
                    total += 0 if one is None else one
        ctx.gradients = [of_rows, *of_weights]
        ctx.dtypes = [rows.dtype, *(one.dtype for one in weights)]
        outputs = tuple(one.clone() for one in sums)  # no views: FSDP hooks on to them
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by that of the loss, in place: they are used once."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a distillation loss are used up by its first backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            one.mul_(of_outputs[0]).to(dtype) if one is not None else None
            for one, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (None, *scaled)


def add_linear_gradients(
    totals: list[Tensor], weights: tuple[Tensor, ...], head: torch.nn.Linear, gradient: Tensor, part: Tensor
) -> None:
    """Add a chunk's gradients of a linear head's weight and bias to their totals, as far as they are wanted."""
    for total, one in zip(totals, weights, strict=True):
        if one is head.bias:
            total += gradient.sum(0)
        elif total.dtype == gradient.dtype:
            total.addmm_(gradient.T, part)
        else:
            total += gradient.T @ part


def distillation_loss(
    rows: Tensor, head: Head, targets: Tensor, teacher: Teacher, objective: Objective, chunk: int | None = None
) -> Terms:
    """The objective over completion rows, with gradients for rows and head.

    Args:
        rows: (rows, width) hidden states of the student. Under autocast they are projected in its numbers.
        head: projects them to logits, (rows, student's padded vocabulary). A plain linear layer is computed without
            autograd; any other module (LoRA, soft-capping) by its own forward and autograd, chunk by chunk.
        targets: (rows,) token ids.
        teacher: for the same rows; None for `seqkd`.
        chunk: rows projected at a time; by default as many as CHUNK_ELEMENTS allows.

    Returns:
        Sums over rows. Without a row they are 0 and `loss` still hangs on the graph.
    """
    weights = [one for one in head.parameters() if one.requires_grad] if isinstance(head, torch.nn.Module) else []
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
    vocabulary = getattr(head, "out_features", None) or 1
    most, at_once = (sizes.get(kind, sizes["cuda"]) // vocabulary for sizes in (CHUNK_ELEMENTS, BLOCK_ELEMENTS))
    job = {
        "head": head,
        "targets": targets,
        "teacher": teacher,
        "objective": objective,
        "dtype": dtype,
        "is_autocast": torch.is_autocast_enabled(kind),
        "chunk": chunk or max(LEAST_ROWS, most),
        "block": max(1, at_once),
        "needs_gradient": torch.is_grad_enabled() and (rows.requires_grad or bool(weights)),
    }
    with torch.autocast(kind, enabled=False):
        return Terms(*FusedTerms.apply(job, rows, *weights))
