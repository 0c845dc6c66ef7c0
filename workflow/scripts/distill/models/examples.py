"""Training examples: records of a split, tokenized for student and teacher."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate, check_conversations
from distill.models.control_tokens import ControlTokens, list_texts
from distill.models.example_cache import describe_chat, get_cached
from distill.models.example_folders import digest_software
from distill.models.example_table import COLUMNS, Example, ExampleTable, write_table
from distill.models.token_alignment import TokenAlignment
from distill.records.conversations import Conversation, read_conversation, read_teacher_conversation
from distill.records.split_reader import Records, digest_records, list_sources
from distill.records.splits import read_chat

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Encoder:
    """How records are tokenized; for the attributes see `encode_examples`."""

    student: ChatTemplate
    teacher: ChatTemplate | None
    max_length: int
    limit: int | None
    alignment: TokenAlignment | None
    is_teacher: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that an example may have."""
        missing = {"teacher_prompt", "common_prompt"} if self.teacher is None else set()
        if self.teacher is None or self.alignment is None:
            missing |= {"teacher_completion", "spans"}
        return tuple(name for name in COLUMNS if name not in missing)

    def describe(self, records: Records) -> dict[str, Any]:
        """Everything that decides the examples of these records."""
        return {
            "records": digest_records(records),
            "software": digest_software(),
            "student": describe_chat(self.student),
            "teacher": describe_chat(self.teacher),
            "max_length": self.max_length,
            "limit": self.limit,
            "is_aligned": self.alignment is not None,
            "is_teacher": self.is_teacher,
        }

    def make(self, records: Records, path: Path | None = None) -> tuple[ExampleTable, dict[str, Any]]:
        """Tokenize records to a table; see `write_table` for the path.

        Returns:
            The table, and its counts as a JSON object.

        Raises:
            InputError: a template does not render some conversations, or a record cannot be tokenized.
        """
        if not all(conversation.is_plain for _, conversation in list_conversations(records)):
            for chat in filter(None, (self.student, self.teacher)):
                check_conversations(chat, list_conversations(records))
        counts = Counts()
        table = write_table(self.encode(records, counts), self.columns, path)
        return table, asdict(counts)

    def encode(self, records: Records, counts: "Counts") -> Iterator[Example]:
        """Yield the examples of the records that are kept, and count all records."""
        for record in records:
            example = encode_example(record, self.student, self.teacher, self.is_teacher, self.alignment)
            counts.total += 1
            counts.unopened += not self.student.has_opened(record["messages"][-1]["content"])
            counts.control.add(self.student.control_tokens, list_texts(record["messages"]))
            lacking = [token for token in example["completion"] if self.limit is not None and token >= self.limit]
            if lacking:
                counts.foreign += 1
                counts.first_foreign = lacking[0] if counts.first_foreign is None else counts.first_foreign
            elif self.alignment is not None and example["spans"] is None:
                counts.unaligned += 1
            elif count_tokens(example) <= self.max_length:
                counts.kept += 1
                yield example

    def has_first(self, records: Records, table: ExampleTable) -> bool:
        """Whether a table begins with the first record as it is tokenized now.

        Tokenizing it also logs what the templates say of themselves, which every job reports.
        """
        first = [record for _, record in zip(range(1), records, strict=False)]
        found = list(self.encode(first, Counts()))
        return found == table[: len(found)]


@dataclass(kw_only=True)
class Counts:
    """What became of records.

    Attributes:
        total, kept: numbers of records.
        foreign: records whose answer has a token that a model lacks.
        first_foreign: the first such token.
        unaligned: records whose answer has not the same bytes in both tokenizations.
        unopened: records whose answer does not begin with what the student's template opens.
        control: their control tokens.
    """

    total: int = 0
    kept: int = 0
    foreign: int = 0
    first_foreign: int | None = None
    unaligned: int = 0
    unopened: int = 0
    control: ControlTokens = field(default_factory=ControlTokens)

    @classmethod
    def read(cls, counts: dict[str, Any]) -> Self:
        """The counts of a JSON object."""
        return cls(**counts | {"control": ControlTokens(**counts["control"])})


def encode_examples(
    records: Records,
    student: ChatTemplate,
    teacher: ChatTemplate | None,
    max_length: int,
    vocabulary: int | None = None,
    *,
    alignment: TokenAlignment | None = None,
    what: str = "records",
    may_be_empty: bool = False,
    is_teacher: bool = False,
    cache: Path | None = None,
) -> ExampleTable:
    """Tokenize records; leave out those that are too long or have an answer with a token that a model lacks.

    Each model has the prompt in its own chat template. The tokens of the completion are the same for both models, so
    their positions correspond; what the student's template opens for the answer therefore stands in both prompts. With
    an alignment, the teacher has prompt and answer in its own tokens, and records whose tokens do not have the same
    bytes in both tokenizations are left out, too.

    Args:
        records: records from `read_split` or a `SplitReader`, each with `uid`, `finish_reason` and `messages`.
        student: the student's chat template.
        teacher: the online teacher's; None without an online teacher.
        max_length: maximum number of tokens of prompt and completion, in either template.
        vocabulary: size of the shared vocabulary, from `shared_vocabulary_size`; by default the student's embeddings.
        alignment: of the tokenizers, if the teacher has another one than the student.
        what: name of the records in messages.
        may_be_empty: warn instead of raising an error if no record is left.
        is_teacher: whether `student` is the teacher itself, which sees `teacher_prompt`.
        cache: folder of tokenized examples, from which they are taken if a job has tokenized the same records alike,
            see `get_cached`; None keeps them in memory.

    Returns:
        Examples with `uid` and the token ids of `prompt`, `completion` and, with a teacher, `teacher_prompt`. Where the
        teacher sees more than the student, `common_prompt` holds the teacher's ids of what both see. With an alignment
        also the ids of `teacher_completion`, and `spans` from `TokenAlignment.find_spans`.

    Raises:
        InputError: no record is left, or a template does not render some conversations; says why.
    """
    limit = student.rows if vocabulary is None else vocabulary
    encoder = Encoder(
        student=student,
        teacher=teacher,
        max_length=max_length,
        limit=limit,
        alignment=alignment,
        is_teacher=is_teacher,
    )
    if cache is None:
        table, found = encoder.make(records)
    else:
        make, check = partial(encoder.make, records), partial(encoder.has_first, records)
        cached = get_cached(cache, encoder.describe(records), list_sources(records), make, check)
        table, found = cached.table, cached.counts
    counts = Counts.read(found)
    counts.control.log()
    report_unopened(counts, student, what)
    report_left_out(counts, student, max_length, what, may_be_empty, vocabulary is None)
    return table


def list_conversations(records: Records) -> Iterator[tuple[str, Conversation]]:
    """Yield the name of each record, and its conversation."""
    for record in records:
        yield f"uid {record['uid']}", read_conversation(read_chat(record)[0])


def encode_example(
    record: dict[str, Any],
    student: ChatTemplate,
    teacher: ChatTemplate | None,
    is_teacher: bool = False,
    alignment: TokenAlignment | None = None,
) -> Example:
    """Tokenize a record; see `encode_examples`."""
    fields, answer = read_chat(record)
    asked, asked_teacher = read_conversation(fields), read_teacher_conversation(fields)
    is_whole = record["finish_reason"] != "length"
    example: Example = {
        "uid": record["uid"],
        "prompt": student.encode_conversation(asked_teacher if is_teacher else asked),
        "completion": student.encode_completion(answer, is_whole),
    }
    if teacher is not None and alignment is not None:
        example["teacher_prompt"] = teacher.encode_conversation(asked_teacher)
        example["teacher_completion"] = teacher.encode_completion(answer, is_whole)
        example["spans"] = alignment.find_spans(example["completion"], example["teacher_completion"])
    elif teacher is not None:
        example["teacher_prompt"] = teacher.encode_conversation(asked_teacher, student.opened)
        if asked_teacher != asked:
            example["common_prompt"] = teacher.encode_conversation(asked, student.opened)
    return example


def count_tokens(example: Example) -> int:
    """Return the number of tokens of prompt and completion, for the model that has more of them."""
    completion: list[int] = example["completion"]
    own = len(example["prompt"]) + len(completion)
    return max(own, len(example.get("teacher_prompt", [])) + len(example.get("teacher_completion", completion)))


def report_unopened(counts: Counts, chat: ChatTemplate, what: str) -> None:
    """Warn of answers that do not begin with what the template opens."""
    if counts.unopened:
        logger.warning(
            "%d of %d %s have an answer that does not begin with %s, which the chat template of %s opens for each "
            "answer: the answer is read as what follows it. template_arguments may turn this off.",
            counts.unopened, counts.total, what, chat.opened.strip(), chat.name,
        )  # fmt: skip


def report_left_out(
    counts: Counts, chat: ChatTemplate, max_length: int, what: str, may_be_empty: bool, is_alone: bool
) -> None:
    """Warn of records that are left out.

    Args:
        counts: what became of the records.
        chat: the student's chat template.
        max_length, what, may_be_empty: see `encode_examples`.
        is_alone: whether the student shares its tokens with no teacher, so that only its own embeddings count.

    Raises:
        InputError: no record is left.
    """
    total = counts.total
    reasons = {}
    if counts.foreign:
        token = chat.tokenizer.convert_ids_to_tokens(counts.first_foreign)
        is_end = counts.first_foreign == chat.end_of_turn
        end = ", which ends each turn in the student's chat template" if is_end else ""
        lacking = "the student's model lacks" if is_alone else "the teacher or its model lacks"
        reasons[f"have an answer with a token that {lacking}, first {token!r}{end}"] = counts.foreign
    if counts.unaligned:
        reasons[
            "have an answer whose tokens do not have the same bytes in the student's and the teacher's tokenizer"
        ] = counts.unaligned
    if too_long := total - counts.kept - counts.foreign - counts.unaligned:
        reasons[f"are longer than max_length = {max_length}"] = too_long
    if total and not counts.kept and not may_be_empty:
        listed = ", ".join(f"{count} of {total} {reason}" for reason, count in reasons.items())
        choice = "whose chat template begins an answer alike" if counts.unaligned else "with the teacher's tokens"
        other = f"choose a student {choice}, or method seqkd"
        own = "add embeddings for these tokens to the model, or choose another one"
        advice = "raise max_length" if too_long else own if is_alone else other
        raise InputError(f"no {what} are left: {listed}; {advice}")
    for reason, count in reasons.items():
        logger.warning("%d of %d %s are left out: they %s", count, total, what, reason)
