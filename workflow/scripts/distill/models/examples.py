"""Training examples: records of a split, tokenized for student and teacher."""

import logging
from collections.abc import Sequence
from typing import Any

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate

logger = logging.getLogger(__name__)

Example = dict[str, Any]


def encode_examples(
    records: Sequence[dict[str, Any]],
    student: ChatTemplate,
    teacher: ChatTemplate | None,
    max_length: int,
    vocabulary: int | None = None,
    *,
    what: str = "records",
    may_be_empty: bool = False,
) -> list[Example]:
    """Tokenize records; leave out those that are too long or have an answer with a token that a model lacks.

    Each model has the prompt in its own chat template. The tokens of the completion are the same for both models, so
    their positions correspond; what the student's template opens for the answer therefore stands in both prompts.

    Args:
        records: records from `read_split`, each with `uid`, `finish_reason` and three `messages`.
        student: the student's chat template.
        teacher: the online teacher's; None without an online teacher.
        max_length: maximum number of tokens of prompt and completion, in either template.
        vocabulary: size of the shared vocabulary, from `shared_vocabulary_size`; by default the student's embeddings.
        what: name of the records in messages.
        may_be_empty: warn instead of raising an error if no record is left.

    Returns:
        Examples with `uid` and the token ids of `prompt`, `completion` and, with a teacher, `teacher_prompt`.

    Raises:
        InputError: no record is left; says why.
    """
    limit = student.rows if vocabulary is None else vocabulary
    examples: list[Example] = []
    foreign: list[int] = []  # the first token of each answer that a model lacks
    for record in records:
        example = encode_example(record, student, teacher)
        lacking = [token for token in example["completion"] if limit is not None and token >= limit]
        longest = max(len(example["prompt"]), len(example.get("teacher_prompt", [])))
        if lacking:
            foreign.append(lacking[0])
        elif longest + len(example["completion"]) <= max_length:
            examples.append(example)
    student.log_control_tokens([message["content"] for message in record["messages"]] for record in records)
    check_opened(records, student, what)
    report_left_out(len(records), len(examples), foreign, student, max_length, what, may_be_empty, vocabulary is None)
    return examples


def encode_example(record: dict[str, Any], student: ChatTemplate, teacher: ChatTemplate | None) -> Example:
    """Tokenize a record; see `encode_examples`."""
    system, prompt, answer = (message["content"] for message in record["messages"])
    example = {
        "uid": record["uid"],
        "prompt": student.encode_prompt(system, prompt),
        "completion": student.encode_completion(answer, record["finish_reason"] != "length"),
    }
    if teacher is not None:
        example["teacher_prompt"] = teacher.encode_prompt(system, prompt, student.opened)
    return example


def check_opened(records: Sequence[dict[str, Any]], chat: ChatTemplate, what: str) -> None:
    """Warn of answers that do not begin with what the template opens."""
    others = sum(not chat.has_opened(record["messages"][2]["content"]) for record in records)
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
) -> None:
    """Warn of records that are left out.

    Args:
        total, kept: numbers of records.
        foreign: a token of each answer that has one that a model lacks.
        chat: the student's chat template.
        max_length, what, may_be_empty: see `encode_examples`.
        is_alone: whether the student shares its tokens with no teacher, so that only its own embeddings count.

    Raises:
        InputError: no record is left.
    """
    reasons = {}
    if foreign:
        token = chat.tokenizer.convert_ids_to_tokens(foreign[0])
        end = ", which ends each turn in the student's chat template" if foreign[0] == chat.end_of_turn else ""
        lacking = "the student's model lacks" if is_alone else "the teacher or its model lacks"
        reasons[f"have an answer with a token that {lacking}, first {token!r}{end}"] = len(foreign)
    if too_long := total - kept - len(foreign):
        reasons[f"are longer than max_length = {max_length}"] = too_long
    if total and not kept and not may_be_empty:
        listed = ", ".join(f"{count} of {total} {reason}" for reason, count in reasons.items())
        other = "choose a student with the teacher's tokens, or method seqkd"
        own = "add embeddings for these tokens to the model, or choose another one"
        advice = "raise max_length" if too_long else own if is_alone else other
        raise InputError(f"no {what} are left: {listed}; {advice}")
    for reason, count in reasons.items():
        logger.warning("%d of %d %s are left out: they %s", count, total, what, reason)
