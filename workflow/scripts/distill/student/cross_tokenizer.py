"""The teacher's side of a micro-batch for a student with another tokenizer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.models.completions import project, to_device
from distill.models.example_table import Example
from distill.models.token_alignment import TokenAlignment, TokenGroups, list_spans
from distill.student.aligned_loss import AlignedTeacher, SpanRows, score_observed
from distill.student.loss import ExactTeacher, TopKTeacher
from distill.student.teacher_signal import Signal

INNER_ROWS = 64  # the teacher's rows inside of spans that are projected at a time


class Places(NamedTuple):
    """The spans of a micro-batch, as row numbers of the student's and the teacher's completion positions.

    Attributes:
        first: (rows,) first row of each student's row's span.
        teacher_first: (rows,) first teacher's row of the same span.
        teacher_targets: (rows,) the teacher's token there.
        is_compared, is_path: (rows,) see `SpanRows`.
        inner: (inner rows,) the student's rows after the first of spans with `is_path`.
        teacher_inner: (teacher's inner rows,) the teacher's rows after the first of spans with `is_path`.
        teacher_inner_targets: (teacher's inner rows,) the teacher's tokens there.
        teacher_inner_first: (teacher's inner rows,) the student's first row of their span.
    """

    first: Tensor
    teacher_first: Tensor
    teacher_targets: Tensor
    is_compared: Tensor
    is_path: Tensor
    inner: Tensor
    teacher_inner: Tensor
    teacher_inner_targets: Tensor
    teacher_inner_first: Tensor


def place_spans(examples: Sequence[Example], groups: TokenGroups) -> Places:
    """The spans of examples from `encode_examples` with an alignment, on the CPU."""
    found: dict[str, list[Any]] = {name: [] for name in Places._fields}
    row = theirs = 0  # rows of the examples before
    for example in examples:
        tokens, teacher_tokens = example["completion"], example["teacher_completion"]
        for start, end, their_start, their_end in list_spans(example["spans"], len(tokens), len(teacher_tokens)):
            size, inner = end - start, range(their_start + 1, their_end)
            target = teacher_tokens[their_start]
            is_compared = groups.student[tokens[start]] == groups.teacher[target]
            is_path = is_compared and (size > 1 or len(inner) > 0)
            found["first"] += [row + start] * size
            found["teacher_first"] += [theirs + their_start] * size
            found["teacher_targets"] += [target] * size
            found["is_compared"] += [is_compared] + [False] * (size - 1)
            found["is_path"] += [is_path] + [False] * (size - 1)
            if is_path:
                found["inner"] += range(row + start + 1, row + end)
                found["teacher_inner"] += (theirs + one for one in inner)
                found["teacher_inner_targets"] += (teacher_tokens[one] for one in inner)
                found["teacher_inner_first"] += [row + start] * len(inner)
        row, theirs = row + len(tokens), theirs + len(teacher_tokens)
    flags = ("is_compared", "is_path")
    return Places(
        *(torch.tensor(found[name], dtype=torch.bool if name in flags else torch.long) for name in Places._fields)
    )


class CrossTokenizerSignal:
    """A teacher that reads an answer in its own tokens.

    Args:
        signal: the teacher on its own tokens.
        groups: groups of the tokens of both vocabularies.
        temperature: temperature of the distributions.
    """

    def __init__(self, signal: Signal, groups: TokenGroups, temperature: float):
        self.signal, self.groups, self.temperature = signal, groups, temperature
        self.is_sharded = signal.is_sharded
        self.tensors: dict[str, Tensor] = {}  # the groups, on the device of the student

    def __call__(self, examples: Sequence[Example], batch: dict[str, Tensor], device: torch.device) -> AlignedTeacher:
        """The teacher at each completion position of the student; see `Signal`."""
        if not self.tensors:
            groups = {"student": self.groups.student, "teacher": self.groups.teacher}
            self.tensors = to_device({name: torch.tensor(found) for name, found in groups.items()}, device)
        # The prompt None differs from every other, so that a teacher in memory collates its own tokens.
        own = [one | {"prompt": None, "completion": one["teacher_completion"]} for one in examples]
        teacher: Any = self.signal(own, batch, device)
        places = Places(**to_device(place_spans(examples, self.groups)._asdict(), device))
        rows = torch.zeros(len(places.first), device=device)
        log_p, is_known = self.score_inner(teacher, places)
        spans = SpanRows(
            row=torch.arange(len(rows), device=device),
            first=places.first,
            targets=torch.zeros_like(places.first),
            teacher_targets=places.teacher_targets,
            is_compared=places.is_compared,
            is_path=places.is_path,
            rest=rows,
            teacher_rest=rows.index_add(0, places.teacher_inner_first, log_p.masked_fill(~is_known, -torch.inf)),
        )
        aligned = take_teacher(teacher, places.teacher_first)
        return AlignedTeacher(
            teacher=aligned,
            spans=spans,
            inner=places.inner,
            groups=self.tensors["student"],
            teacher_groups=self.tensors["teacher"],
            size=self.groups.size,
            slopes=rows,
        )

    def score_inner(self, teacher: ExactTeacher | TopKTeacher, places: Places) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the teacher's inner tokens, float32, and whether they are known."""
        inner, targets = take_teacher(teacher, places.teacher_inner), places.teacher_inner_targets
        if isinstance(inner, TopKTeacher):
            is_target = inner.ids == targets[:, None]
            return torch.where(is_target, inner.logprobs, 0).sum(-1), is_target.any(-1)

        def logits_of(part: Tensor) -> Tensor:
            return project(part, inner.head, inner.transform).float()

        rows = len(self.groups.teacher)
        log_p = score_observed(inner.rows, targets, logits_of, rows, self.temperature, INNER_ROWS)
        return log_p, torch.ones_like(log_p, dtype=torch.bool)


def take_teacher(teacher: ExactTeacher | TopKTeacher, rows: Tensor) -> ExactTeacher | TopKTeacher:
    """The teacher at some of its rows, by their numbers."""
    if isinstance(teacher, TopKTeacher):
        return TopKTeacher(*(tensor.index_select(0, rows) for tensor in teacher))
    return teacher._replace(rows=teacher.rows.index_select(0, rows))


def describe_spans(examples: Sequence[Example], alignment: TokenAlignment) -> str:
    """A sentence about how much of the examples' answers is compared, for the log."""
    spans = compared = tokens = 0
    for example in examples:
        tokens += len(example["completion"])
        for student, teacher in example["spans"]:
            spans += 1
            compared += alignment.is_comparable(example["completion"][student], example["teacher_completion"][teacher])
    return (
        f"cross_tokenizer: {tokens} tokens of the training answers are {spans} spans of equal bytes in both "
        f"tokenizations; the distributions are compared in {compared} of them"
    )
