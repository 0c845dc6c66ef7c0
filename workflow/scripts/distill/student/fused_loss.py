"""The distillation objective on hidden states, without ever holding the logits of all rows.

Rows are projected to logits in chunks, each chunk is reduced in float32 log space, and its gradients are computed in
the forward pass. Only the gradients of the rows and of the head's weights outlive a chunk, so the backward pass has
nothing to recompute and no (batch, length, vocabulary) tensor exists. If the caller says by what it will multiply the
loss, the weights' gradients are added to their `grad` at once; otherwise they are kept beside it until backward.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.models.completions import Head, decoder_and_head, project, read_batch, take_rows
from distill.models.logits import IDENTITY, LogitTransform, read_transform
from distill.student.aligned_loss import AlignedTeacher, score_observed
from distill.student.loss import (
    BlockTeacher,
    CachedTeacher,
    ExactTeacher,
    MixedTeacher,
    Objective,
    Teacher,
    Terms,
    compute_terms,
)

logger = logging.getLogger(__name__)

# Elements of logits per chunk, enough for fast matrix products, and per block, the part of a chunk that is reduced at
# once: on a CPU small enough for its caches.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**25}
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
MIN_CHUNK_ROWS = 16


def is_plain(head: Head) -> bool:
    """Whether a head is a linear layer without LoRA, quantization or accelerate's device hooks."""
    return type(head) is torch.nn.Linear and not hasattr(head, "_hf_hook")


class Projection:
    """A plain linear head without autograd that writes the logits of every chunk into the same buffer.

    Args:
        head: the layer.
        dtype: data type of the product.
        chunk: maximum number of rows.
    """

    def __init__(self, head: torch.nn.Linear, dtype: torch.dtype, chunk: int):
        self.weight = head.weight.to(dtype)
        self.bias = head.bias.to(dtype) if head.bias is not None else None
        self.logits = self.weight.new_empty((chunk, len(self.weight)))

    def __call__(self, rows: Tensor) -> Tensor:
        """(rows, vocabulary) logits; the next call overwrites them."""
        out = self.logits[: len(rows)]
        if self.bias is None:
            return torch.mm(rows.to(out.dtype), self.weight.T, out=out)
        return torch.addmm(self.bias, rows.to(out.dtype), self.weight.T, out=out)


# ---- The teacher's side of chunks and blocks ----


def split_teacher(teacher: Teacher, chunk: int) -> Iterator[BlockTeacher]:
    """The output of the teacher's head, or its top-k log-probabilities, by chunks; endless None without a teacher."""
    if teacher is None:
        while True:
            yield None
    elif isinstance(teacher, AlignedTeacher):
        inside: Any = teacher.teacher
        part: Any
        for at, part in enumerate(split_teacher(inside, chunk)):
            spans = teacher.spans.take(slice(at * chunk, (at + 1) * chunk))
            yield teacher._replace(teacher=part, spans=spans)
    elif isinstance(teacher, CachedTeacher):
        for parts in zip(*(tensor.split(chunk) for tensor in teacher), strict=True):
            yield type(teacher)(*parts)
    elif is_plain(teacher.head):
        head: Any = teacher.head
        projection = Projection(head, head.weight.dtype, min(chunk, len(teacher.rows)))
        yield from map(projection, teacher.rows.split(chunk))
    else:
        for part in teacher.rows.split(chunk):
            yield project(part, teacher.head)


def take_block(teacher: BlockTeacher, block: slice, transform: LogitTransform, exact: torch.dtype) -> BlockTeacher:
    """Some rows of a chunk's teacher.

    Args:
        teacher: output of the teacher's head, or its top-k log-probabilities.
        block: the rows.
        transform: of the teacher's logits.
        exact: data type in which it is applied.
    """
    if isinstance(teacher, AlignedTeacher):
        inside: Any = teacher.teacher
        part: Any = take_block(inside, block, transform, exact)
        return teacher._replace(teacher=part, spans=teacher.spans.take(block))
    if isinstance(teacher, CachedTeacher):
        return type(teacher)(*(tensor[block] for tensor in teacher))
    if teacher is None or transform.is_identity:
        return teacher[block] if teacher is not None else None
    return transform.apply(teacher[block].to(exact))


# ---- The student's head ----


@dataclass(frozen=True)
class Settings:
    """How `FusedTerms` computes.

    Attributes:
        dtype: data type in which rows are projected.
        is_autocast: whether the caller runs under autocast.
        chunk: rows per chunk.
        block: rows per block.
        needs_gradient: whether gradients of rows or weights are needed.
        scale: what the caller multiplies the loss by; None if it is not known yet.
        transform: what the student does to its logits after the head.
        teacher_transform: the same for the teacher's hidden states.
    """

    objective: Objective
    dtype: torch.dtype
    is_autocast: bool
    chunk: int
    block: int
    needs_gradient: bool
    scale: float | None
    transform: LogitTransform
    teacher_transform: LogitTransform


class LinearHead:
    """Forward and backward of a plain linear head, without autograd."""

    def __init__(self, head: torch.nn.Linear, weights: Sequence[Tensor], settings: Settings, rows: int):
        self.head, self.weights, self.settings = head, weights, settings
        self.projection = Projection(head, settings.dtype, min(settings.chunk, rows))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of a chunk, and the tensor for their gradient: the same memory."""
        self.rows = rows.to(self.projection.weight.dtype)
        logits = self.projection(self.rows)
        return logits, logits

    def backward(self, gradient: Tensor, row_gradient: Tensor, weight_gradients: Sequence[Tensor]) -> None:
        """Write the gradient of the chunk's rows, and add those of weight and bias to their totals."""
        weight = self.projection.weight
        if row_gradient.dtype == weight.dtype:
            torch.mm(gradient, weight, out=row_gradient)
        else:
            row_gradient.copy_(gradient @ weight)
        for total, parameter in zip(weight_gradients, self.weights, strict=True):
            factor = get_factor(total, parameter, self.settings)
            if parameter is self.head.bias:
                total.add_(gradient.sum(0), alpha=factor)
            else:
                add_product(total, gradient.T, self.rows, factor)


class AutogradHead:
    """Forward and backward of any other head, such as one with LoRA, by its own forward and autograd."""

    def __init__(self, head: Head, weights: Sequence[Tensor], settings: Settings):
        self.head, self.weights, self.settings = head, weights, settings

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of a chunk, and a tensor for their gradient."""
        settings = self.settings
        with torch.enable_grad(), torch.autocast(rows.device.type, settings.dtype, enabled=settings.is_autocast):
            self.rows = rows.detach().requires_grad_()
            self.logits = self.head(self.rows)
        return self.logits, torch.empty_like(self.logits, requires_grad=False)

    def backward(self, gradient: Tensor, row_gradient: Tensor, weight_gradients: Sequence[Tensor]) -> None:
        """Write the gradient of the chunk's rows, and add those of the weights to their totals."""
        found = torch.autograd.grad(self.logits, [self.rows, *self.weights], gradient, allow_unused=True)
        row_gradient.copy_(found[0])
        for total, parameter, one in zip(weight_gradients, self.weights, found[1:], strict=True):
            if one is not None:
                total.add_(one, alpha=get_factor(total, parameter, self.settings))


# ---- The gradients of the head's weights ----


def takes_gradient_early(weight: Tensor, dtype: torch.dtype, settings: Settings) -> bool:
    """Whether a weight's gradient can be added to its `grad` before the backward pass reaches it.

    Hooks of the weight must see the gradient first, and sums in 16 bits would lose the smaller addends.
    """
    has_hooks = bool(weight._backward_hooks) or bool(getattr(weight, "_post_accumulate_grad_hooks", None))
    return settings.scale is not None and weight.is_leaf and weight.dtype == dtype and not has_hooks


def make_total(weight: Tensor, dtype: torch.dtype, settings: Settings) -> Tensor:
    """The tensor that a weight's gradient is added to: its `grad` if possible, which is made if there is none."""
    if not takes_gradient_early(weight, dtype, settings):
        return torch.zeros_like(weight, dtype=dtype)
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def get_factor(total: Tensor, weight: Tensor, settings: Settings) -> float:
    """What is multiplied to the gradients that are added to a total from `make_total`."""
    return settings.scale if settings.scale is not None and total is weight.grad else 1.0


def add_product(total: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """Add `factor · left @ right` to a total, on an Nvidia GPU without a temporary of its size.

    Args:
        total: (rows, columns), of the factors' dtype or float32.
        left, right: (rows, inner) and (inner, columns) matrices of the same dtype.
        factor: a number.
    """
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=factor)
    elif has_mixed_product(total, left.dtype):
        torch.addmm(total, left, right, alpha=factor, out_dtype=total.dtype, out=total)
    else:
        product = left @ right
        # The CPU's kernel converts it to another tensor either way; here a memory plan sees it.
        total.add_(product if total.is_cuda else product.to(total.dtype), alpha=factor)


def has_mixed_product(total: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch can add products of matrices of a 16-bit dtype to a float32 tensor, on its device."""
    return total.is_cuda and total.dtype == torch.float32 and try_mixed_product(total.device, dtype)


@functools.cache
def try_mixed_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small product runs: older versions of torch, other GPUs and other dtypes refuse it."""
    total, part = torch.zeros(16, 16, device=device), torch.zeros(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(total, part, part, out_dtype=total.dtype, out=total)
    except (RuntimeError, TypeError) as error:
        logger.debug("no products of %s in float32: %s", dtype, error)
        return False
    return True


# ---- The loss ----


def reduce_chunk(
    raw: Tensor, gradient: Tensor, targets: Tensor, teacher: BlockTeacher, sums: Tensor, settings: Settings
) -> None:
    """Add the terms of a chunk to `sums`, and write the gradient of its loss with respect to the head's output.

    It goes block by block.

    Args:
        raw: (rows, vocabulary) output of the student's head.
        gradient: (rows, vocabulary), written; may be the same tensor as `raw`.
        sums: (5,) `Terms`.
    """
    transform = settings.transform
    for start in range(0, len(raw), settings.block):
        block = slice(start, start + settings.block)
        logits = transform.apply(raw[block].detach().to(sums.dtype))
        part = take_block(teacher, block, settings.teacher_transform, sums.dtype)
        terms, found = compute_terms(logits, targets[block], part, settings.objective, settings.needs_gradient)
        sums += torch.stack(terms)
        if found is not None:
            gradient[block] = found if transform.is_identity else found.mul_(transform.differentiate(logits))


def add_rests(
    aligned: AlignedTeacher,
    student: LinearHead | AutogradHead,
    rows: Tensor,
    targets: Tensor,
    settings: Settings,
    exact: torch.dtype,
) -> AlignedTeacher:
    """The aligned teacher with the student's targets and the log-probabilities of the rest of its spans.

    Only the inner rows are projected, which the main pass projects once more.
    """
    spans, objective = aligned.spans, settings.objective

    def logits_of(part: Tensor) -> Tensor:
        logits, _ = student.forward(part)
        return settings.transform.apply(logits.detach().to(exact))

    inner_rows, inner_targets = (one.index_select(0, aligned.inner) for one in (rows, targets))
    vocabulary = objective.vocabulary or len(aligned.groups)
    chunk = min(settings.block, settings.chunk)
    found = score_observed(inner_rows, inner_targets, logits_of, vocabulary, objective.temperature, chunk)
    zeros = torch.zeros(len(rows), device=rows.device, dtype=exact)
    rest = zeros.index_add(0, spans.first.index_select(0, aligned.inner), found.to(exact))
    return aligned._replace(spans=spans._replace(targets=targets, rest=rest), slopes=zeros)


class FusedTerms(torch.autograd.Function):
    """`Terms`, with the gradients of rows and head weights computed in the forward pass; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, head: Head, targets: Tensor, teacher: Teacher, settings: Settings, rows: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """See `distillation_loss`; `weights` are the head's parameters that need a gradient."""
        plain: Any = head if is_plain(head) else None
        student = LinearHead(plain, weights, settings, len(rows)) if plain else AutogradHead(head, weights, settings)
        exact = torch.promote_types(rows.dtype, torch.float32)
        sums = torch.zeros(len(Terms._fields), device=rows.device, dtype=exact)
        if isinstance(teacher, AlignedTeacher):
            teacher = add_rests(teacher, student, rows, targets, settings, exact)
        row_gradients = torch.empty_like(rows)
        weight_gradients = [make_total(one, exact, settings) for one in weights] if settings.needs_gradient else []
        chunks = (tensor.split(settings.chunk) for tensor in (rows, targets, row_gradients))
        # Not strict: without a teacher its side is endless.
        for part, part_targets, part_gradient, part_teacher in zip(
            *chunks, split_teacher(teacher, settings.chunk), strict=False
        ):
            logits, gradient = student.forward(part)
            reduce_chunk(logits, gradient, part_targets, part_teacher, sums, settings)
            if settings.needs_gradient:
                student.backward(gradient, part_gradient, weight_gradients)
        # What is in `grad` already is no gradient of the backward pass.
        waiting = [None if total is one.grad else total for total, one in zip(weight_gradients, weights, strict=False)]
        ctx.gradients = [row_gradients, *waiting]
        ctx.dtypes = [rows.dtype, *(one.dtype for one in weights)]
        ctx.scale = settings.scale
        outputs = tuple(one.clone() for one in sums)  # clones, not views: FSDP registers hooks on them
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by the gradient of the loss, in place."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a distillation loss are used up by its first backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        if ctx.scale is not None:
            torch._assert_async(output_gradients[0] == ctx.scale, "the loss was not multiplied by its scale")
        scaled = [
            None if one is None else one.mul_(output_gradients[0]).to(dtype)
            for one, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (None, None, None, None, *scaled)


def distillation_loss(
    rows: Tensor,
    head: Head,
    targets: Tensor,
    teacher: Teacher | MixedTeacher,
    objective: Objective,
    chunk: int | None = None,
    transform: LogitTransform = IDENTITY,
    scale: float | None = None,
) -> Terms:
    """The objective over completion rows, with gradients for rows and head.

    Args:
        rows: (rows, width) hidden states of the student. Under autocast they are projected in its data type.
        head: projects them to logits, (rows, student's padded vocabulary). A plain linear layer runs without autograd,
            any other module, such as one with LoRA, by its own forward and autograd.
        targets: (rows,) token ids.
        teacher: the teacher's side of the same rows; None for a method without a divergence.
        chunk: rows per chunk; by default as many as CHUNK_ELEMENTS allows.
        transform: what the student does to its logits after the head.
        scale: a number that the caller multiplies the loss by before its backward pass, which must follow. With it, the
            gradients of the head's float32 weights are in their `grad` when this function returns, without a second
            tensor of their size. None if the number is not known or changes on the way, as with a gradient scaler.

    Returns:
        Sums over rows. Without rows they are zero, still attached to autograd.

    Raises:
        RuntimeError: in the backward pass, if the loss was not multiplied by `scale`. On a GPU the kernel fails.
    """
    if isinstance(teacher, MixedTeacher):
        parts = [
            distillation_loss(rows[index], head, targets[index], one, objective, chunk, transform, scale)
            for index, one in teacher.parts
        ]
        return Terms(*(torch.stack(values).sum() for values in zip(*parts, strict=True)))
    weights = [one for one in head.parameters() if one.requires_grad] if isinstance(head, torch.nn.Module) else []
    kind = rows.device.type
    is_autocast = torch.is_autocast_enabled(kind)
    vocabulary = getattr(head, "out_features", None) or 1
    chunk_rows, block_rows = (
        sizes.get(kind, sizes["cuda"]) // vocabulary for sizes in (CHUNK_ELEMENTS, BLOCK_ELEMENTS)
    )
    source = teacher.teacher if isinstance(teacher, AlignedTeacher) else teacher
    settings = Settings(
        objective=objective,
        dtype=torch.get_autocast_dtype(kind) if is_autocast else rows.dtype,
        is_autocast=is_autocast,
        chunk=chunk or max(MIN_CHUNK_ROWS, chunk_rows),
        block=max(1, block_rows),
        needs_gradient=torch.is_grad_enabled() and (rows.requires_grad or bool(weights)),
        scale=scale,
        transform=transform,
        teacher_transform=source.transform if isinstance(source, ExactTeacher) else IDENTITY,
    )
    with torch.autocast(kind, enabled=False):
        return Terms(*FusedTerms.apply(head, targets, teacher, settings, rows, *weights))


def score_completions(self: Any, *args: Any, objective: Objective | None = None, **inputs: Any) -> Any:
    """The `Terms` of a micro-batch, as the forward method of a causal model, so that DDP and FSDP see all gradients.

    Args:
        inputs: the tensors from `collate`, and `teacher` and optionally `scale` for `distillation_loss`.
        objective: None runs the model's own forward, which `generate` calls.
    """
    if objective is None:
        return type(self).forward(self, *args, **inputs)
    decoder, head = decoder_and_head(self)
    rows = take_rows(read_batch(decoder, inputs), inputs["positions"])
    transform, scale = read_transform(self.config), inputs.get("scale")
    return tuple(
        distillation_loss(rows, head, inputs["targets"], inputs["teacher"], objective, transform=transform, scale=scale)
    )
