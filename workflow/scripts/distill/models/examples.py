"""Training examples: records of a split, tokenized for student and teacher."""

import logging
from collections.abc import Sequence
from typing import Any

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate, check_conversations
from distill.models.control_tokens import list_texts
from distill.models.token_alignment import TokenAlignment
from distill.records.conversations import read_conversation, read_teacher_conversation
from distill.records.splits import read_chat

logger = logging.getLogger(__name__)

Example = dict[str, Any]


def encode_examples(
    records: Sequence[dict[str, Any]],
    student: ChatTemplate,
    teacher: ChatTemplate | None,
    max_length: int,
    vocabulary: int | None = None,
    *,
    alignment: TokenAlignment | None = None,
    what: str = "records",
    may_be_empty: bool = False,
    is_teacher: bool = False,
) -> list[Example]:
    """Tokenize records; leave out those that are too long or have an answer with a token that a model lacks.

    Each model has the prompt in its own chat template. The tokens of the completion are the same for both models, so
    their positions correspond; what the student's template opens for the answer therefore stands in both prompts. With
    an alignment, the teacher has prompt and answer in its own tokens, and records whose tokens do not have the same
    bytes in both tokenizations are left out, too.

    Args:
        records: records from `read_split`, each with `uid`, `finish_reason` and `messages`.
        student: the student's chat template.
        teacher: the online teacher's; None without an online teacher.
        max_length: maximum number of tokens of prompt and completion, in either template.
        vocabulary: size of the shared vocabulary, from `shared_vocabulary_size`; by default the student's embeddings.
        alignment: of the tokenizers, if the teacher has another one than the student.
        what: name of the records in messages.
        may_be_empty: warn instead of raising an error if no record is left.
        is_teacher: whether `student` is the teacher itself, which sees `teacher_prompt`.

    Returns:
        Examples with `uid` and the token ids of `prompt`, `completion` and, with a teacher, `teacher_prompt`. Where the
        teacher sees more than the student, `common_prompt` holds the teacher's ids of what both see. With an alignment
        also the ids of `teacher_completion`, and `spans` from `TokenAlignment.find_spans`.

    Raises:
        InputError: no record is left, or a template does not render some conversations; says why.
    """
    for chat in (student, teacher):
        if chat is not None:
            asked = ((f"uid {record['uid']}", read_conversation(read_chat(record)[0])) for record in records)
            check_conversations(chat, asked)
    limit = student.rows if vocabulary is None else vocabulary
    examples: list[Example] = []
    foreign: list[int] = []  # the first token of each answer that a model lacks
    unaligned = 0
    for record in records:
        example = encode_example(record, student, teacher, is_teacher, alignment)
        lacking = [token for token in example["completion"] if limit is not None and token >= limit]
        if lacking:
            foreign.append(lacking[0])
        elif alignment is not None and example["spans"] is None:
            unaligned += 1
        elif count_tokens(example) <= max_length:
            examples.append(example)
    student.log_control_tokens(list_texts(record["messages"]) for record in records)
    check_opened(records, student, what)
    report_left_out(
        len(records), len(examples), foreign, student, max_length, what, may_be_empty, vocabulary is None, unaligned
    )
    return examples


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


def check_opened(records: Sequence[dict[str, Any]], chat: ChatTemplate, what: str) -> None:
    """Warn of answers that do not begin with what the template opens."""
    others = sum(not chat.has_opened(record["messages"][-1]["content"]) for record in records)
    if others:
        logger.warning(
            "%d of %d %s have an answer that does not begin with %s, which the chat template of %s opens for each "
            "answer: the answer is read as what follows it. template_arguments may turn this off.",
            others, len(records), what, chat.opened.strip(), chat.name,
        )  # fmt: skip


def report_left_out(
    total: int,
    kept: int,
    foreign: Sequence[int],
    chat: ChatTemplate,
    max_length: int,
    what: str,
    may_be_empty: bool,
    is_alone: bool,
    unaligned: int = 0,
) -> None:
    """Warn of records that are left out.

    Args:
        total, kept: numbers of records.
        foreign: a token of each answer that has one that a model lacks.
        chat: the student's chat template.
        max_length, what, may_be_empty: see `encode_examples`.
        is_alone: whether the student shares its tokens with no teacher, so that only its own embeddings count.
        unaligned: records whose answer has not the same bytes in both tokenizations.

    Raises:
        InputError: no record is left.
    """
    reasons = {}
    if foreign:
        token = chat.tokenizer.convert_ids_to_tokens(foreign[0])
        end = ", which ends each turn in the student's chat template" if foreign[0] == chat.end_of_turn else ""
        lacking = "the student's model lacks" if is_alone else "the teacher or its model lacks"
        reasons[f"have an answer with a token that {lacking}, first {token!r}{end}"] = len(foreign)
    if unaligned:
        reasons[
            "have an answer whose tokens do not have the same bytes in the student's and the teacher's tokenizer"
        ] = unaligned
    if too_long := total - kept - len(foreign) - unaligned:
        reasons[f"are longer than max_length = {max_length}"] = too_long
    if total and not kept and not may_be_empty:
        listed = ", ".join(f"{count} of {total} {reason}" for reason, count in reasons.items())
        other = "choose a student with the teacher's tokens, or method seqkd"
        other = "choose a student whose chat template begins an answer alike, or method seqkd" if unaligned else other
        own = "add embeddings for these tokens to the model, or choose another one"
        advice = "raise max_length" if too_long else own if is_alone else other
        raise InputError(f"no {what} are left: {listed}; {advice}")
    for reason, count in reasons.items():
        logger.warning("%d of %d %s are left out: they %s", count, total, what, reason)
