"""The divergence of two models with different tokenizers, on logits: pure functions with their gradients.

An answer is cut into the shortest spans that have the same bytes in both tokenizations (`models/token_alignment.py`).
Where a span starts, both models say how the same text goes on, so their distributions are compared there, over events
that both vocabularies can express:

- each group of tokens, see `TokenGroups`;
- the observed span, if it has several tokens in either tokenization: its probability is the product of those of its
  tokens. What remains of the first token's probability stays in the first token's group.

The events exclude each other and cover everything, so they have a total probability of one in both models. Positions
inside of a span have no divergence of their own; their gradient comes from the span's probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from distill.models.token_alignment import OTHER

if TYPE_CHECKING:
    from distill.student.loss import ExactTeacher, Objective, TopKTeacher

FLOOR = -87.0  # clamp floor of a log-probability, above float32's smallest normal number; smaller ones are negligible
# Largest log-probability of the rest of a span: what remains of its first token's probability then exceeds rounding.
LARGEST_REST = -1e-6


class SpanRows(NamedTuple):
    """The spans of the student's rows. A row is a completion position; other rows than the first of a span are inner.

    Attributes:
        row: (rows,) its own number.
        first: (rows,) number of the first row of its span.
        targets: (rows,) the student's token.
        teacher_targets: (rows,) the teacher's first token of the span.
        is_compared: (rows,) whether it is the first row of a span whose distributions are compared.
        is_path: (rows,) whether it also is the first row of a span whose own probability is an event.
        rest: (rows,) log-probability of the student's tokens in the span after the first, at the temperature.
        teacher_rest: (rows,) the same for the teacher.
    """

    row: Tensor
    first: Tensor
    targets: Tensor
    teacher_targets: Tensor
    is_compared: Tensor
    is_path: Tensor
    rest: Tensor
    teacher_rest: Tensor

    def take(self, block: slice) -> SpanRows:
        """Some of the rows."""
        return SpanRows(*(tensor[block] for tensor in self))


class AlignedTeacher(NamedTuple):
    """The teacher of a student with another tokenizer.

    Attributes:
        teacher: the teacher at the first token of the span of each of the student's rows; its logits in a block.
        spans: the spans.
        inner: (inner rows,) numbers of the student's inner rows.
        groups: (student's vocabulary,) group of each token id.
        teacher_groups: (teacher's vocabulary,) the same for the teacher.
        size: number of groups.
        slopes: (rows,) derivative of the divergence with respect to `rest`, written where spans start and read at
            their inner rows.
    """

    teacher: ExactTeacher | TopKTeacher | Tensor
    spans: SpanRows
    inner: Tensor
    groups: Tensor
    teacher_groups: Tensor
    size: int
    slopes: Tensor


def aligned_divergence(logits: Tensor, aligned: AlignedTeacher, objective: Objective) -> tuple[Tensor, Tensor]:
    """D over the events of the rows where a span starts, and its gradient with respect to the student's logits.

    Blocks must come in the order of the rows, since the slopes of an inner row are those of its span's first row.

    Args:
        logits: (rows, student's vocabulary).
        aligned: the teacher of the same rows.

    Returns:
        A scalar and (rows, student's vocabulary).
    """
    spans = aligned.spans
    index = aligned.groups.expand_as(logits)
    log_q = (logits / objective.temperature).log_softmax(dim=-1)
    target = spans.targets[:, None]
    log_p, path_p, is_kept, is_path = read_teacher(aligned, objective.temperature, log_q.dtype)
    left, path_q = split_observed(log_q, target, spans.rest, is_path)
    log_groups = merge_others(sum_by_group(left, index, aligned.size), is_kept)
    p, q = (list_events(groups, path, is_kept, is_path) for groups, path in ((log_p, path_p), (log_groups, path_q)))
    value, slope, total = objective.compare(p, q)

    # Groups that are merged have the slope of OTHER.
    group_slope = torch.where(is_kept, slope[:, :-1], slope[:, OTHER : OTHER + 1])
    path_slope = torch.where(is_path, slope[:, -1], 0)
    direct = (left - log_groups.gather(1, index)).exp_().mul_(group_slope.gather(1, index))
    direct = direct.scatter_add_(1, target, path_slope[:, None]).mul_(spans.is_compared[:, None])

    own = aligned.groups[spans.targets][:, None]
    left_slope = (group_slope.gather(1, own) * (path_q[:, None] - log_groups.gather(1, own)).exp())[:, 0]
    rest_slope = torch.where(is_path, slope[:, -1] - left_slope, 0)
    aligned.slopes.index_copy_(0, spans.row, rest_slope.to(aligned.slopes.dtype))
    inner_slope = torch.where(spans.first == spans.row, 0, aligned.slopes.index_select(0, spans.first))
    direct.scatter_add_(1, target, inner_slope[:, None])

    total = torch.where(spans.is_compared[:, None], total, 0) + inner_slope[:, None]
    gradient = direct.addcmul_(log_q.exp_(), total, value=-1).div_(objective.temperature)
    return torch.where(spans.is_compared, value, 0).sum(), gradient


def read_teacher(
    aligned: AlignedTeacher, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The teacher's side of a block.

    Returns:
        (rows, groups) log-probabilities, those of the merged groups in OTHER; (rows,) log-probabilities of the observed
        spans; (rows, groups) which groups are events of their own; and (rows,) for which rows the observed span is one.
        With the k most likely tokens of the teacher, the groups of these tokens are events, and all others are merged
        with the tail. A span is no event if one of its tokens is not among them.
    """
    spans = aligned.spans
    teacher: Any = aligned.teacher  # logits, or a TopKTeacher
    if isinstance(teacher, Tensor):
        width = min(teacher.shape[-1], len(aligned.teacher_groups))
        log_p = (teacher[:, :width].to(dtype) / temperature).log_softmax(dim=-1)
        index = aligned.teacher_groups[:width].expand_as(log_p)
        column, is_path = spans.teacher_targets[:, None], spans.is_path
    else:
        log_p, index = teacher.logprobs.to(dtype), aligned.teacher_groups[teacher.ids.long()]
        is_target = teacher.ids == spans.teacher_targets[:, None]
        column = is_target.int().argmax(dim=-1, keepdim=True)
        is_path = spans.is_path & is_target.any(dim=-1) & spans.teacher_rest.isfinite()
    left, path = split_observed(log_p, column, spans.teacher_rest, is_path)
    groups = sum_by_group(left, index, aligned.size)
    is_kept = torch.ones_like(groups, dtype=torch.bool)
    if not isinstance(teacher, Tensor):
        is_kept = groups > -torch.inf
        tail = groups[:, :1].logaddexp(teacher.log_tail.to(dtype)[:, None])
        groups = torch.cat([tail, groups[:, 1:]], dim=-1)
    is_kept[:, OTHER] = False
    return groups, path, is_kept, is_path


def split_observed(log_probabilities: Tensor, column: Tensor, rest: Tensor, is_path: Tensor) -> tuple[Tensor, Tensor]:
    """The observed spans as events apart from their first tokens.

    Args:
        log_probabilities: (rows, n).
        column: (rows, 1) column of the first token of the span.
        rest: (rows,) log-probability of the tokens after it.
        is_path: (rows,) whether the span becomes an event; other rows stay as they are.

    Returns:
        (rows, n) log-probabilities without those of the spans, and (rows,) those of the spans.
    """
    start = log_probabilities.gather(1, column)
    left = torch.where(is_path[:, None], start + log_without(rest)[:, None], start)
    return log_probabilities.scatter(1, column, left), start[:, 0] + rest


def log_without(rest: Tensor) -> Tensor:
    """log(1 − exp(rest)) of log-probabilities, at most LARGEST_REST."""
    return torch.log(-torch.expm1(rest.clamp(max=LARGEST_REST)))


def sum_by_group(log_probabilities: Tensor, index: Tensor, size: int) -> Tensor:
    """(rows, size) logarithms of the sums of probabilities, -inf for an empty sum.

    Args:
        log_probabilities: (rows, n).
        index: (rows, n) group of each column.
        size: number of groups.
    """
    empty = log_probabilities.new_full((len(log_probabilities), size), -torch.inf)
    largest = empty.scatter_reduce(1, index, log_probabilities, "amax")
    largest = torch.where(largest == -torch.inf, 0, largest)
    shifted = (log_probabilities - largest.gather(1, index)).exp_()
    return torch.zeros_like(empty).scatter_add_(1, index, shifted).log_().add_(largest)


def merge_others(log_groups: Tensor, is_kept: Tensor) -> Tensor:
    """(rows, groups) log-probabilities in which each merged group has that of all merged groups together."""
    others = log_groups.masked_fill(is_kept, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.where(is_kept, log_groups, others)


def list_events(log_groups: Tensor, path: Tensor, is_kept: Tensor, is_path: Tensor) -> Tensor:
    """(rows, groups + 1) log-probabilities of the events: the groups, all merged ones as OTHER, and the observed span.

    Columns without an event have FLOOR in both models, which no divergence counts.
    """
    is_event = torch.cat([torch.ones_like(is_path)[:, None], is_kept[:, 1:], is_path[:, None]], dim=-1)
    found = torch.cat([log_groups, path[:, None]], dim=-1)
    return found.masked_fill(~is_event, FLOOR).clamp(min=FLOOR)


def score_observed(
    rows: Tensor,
    targets: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    vocabulary: int,
    temperature: float,
    chunk: int,
) -> Tensor:
    """Log-probabilities of observed tokens at a temperature, without gradients.

    Args:
        rows: (rows, width) hidden states.
        targets: (rows,) token ids.
        logits_of: projects hidden states to logits in float32 or float64.
        vocabulary: number of token ids, from 0, that count.
        temperature: divides the logits.
        chunk: rows that are projected at a time.

    Returns:
        (rows,) of the dtype of the logits.
    """
    found = []
    with torch.no_grad():
        for part, target in zip(rows.split(chunk), targets.split(chunk), strict=True):
            log_q = (logits_of(part)[:, :vocabulary] / temperature).log_softmax(dim=-1)
            found.append(log_q.gather(1, target[:, None])[:, 0])
    return torch.cat(found)
