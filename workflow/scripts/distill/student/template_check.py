"""Whether student and teacher read the same prompts and end an answer alike, which learning from a teacher assumes."""

import logging
import os
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from distill.models.chat import ChatTemplate
from distill.models.example_table import Example

logger = logging.getLogger(__name__)

BEFORE, AFTER = 20, 80  # characters that are shown before and after the place where two prompts first differ
ADVICE = "If this is not intended, give the student's tokenizer the teacher's chat template, or set template_arguments."


def compare_templates(examples: Sequence[Example], student: ChatTemplate, teacher: ChatTemplate) -> list[str]:
    """What differs between the two models' prompts and ends of turn, as sentences; logged once by the first rank.

    The prompts of all examples are compared as the token ids that the models read, so what a template opens for the
    answer does not count: the student's stands in both prompts.

    Args:
        examples: from `encode_examples` with a teacher.
        student, teacher: the chat templates.

    Raises:
        InputError: the teacher has no token that ends a turn; see `ChatTemplate.end_of_turn`.
    """
    found = [*compare_prompts(examples, student, teacher), *compare_ends(student, teacher)]
    if found and os.environ.get("RANK", "0") == "0":
        logger.warning("the chat templates of student and teacher differ:\n  %s", "\n  ".join([*found, ADVICE]))
    return found


def compare_prompts(examples: Sequence[Example], student: ChatTemplate, teacher: ChatTemplate) -> list[str]:
    """A sentence with both texts if some prompts differ in more than what the teacher alone sees."""
    different, example = 0, None  # their number, and the first of them
    for one in examples:
        if one["prompt"] != get_common_prompt(one):
            different, example = different + 1, example or one
    if example is None:
        return []
    count = "all" if different == len(examples) else f"{different} of {len(examples)}"
    first, second = cut_at_difference(*read_prompts(example, student.tokenizer, teacher.tokenizer))
    return [
        f"Student and teacher read different prompts in {count} training records. Where those of the first one "
        f"differ, the student reads {first!r} and the teacher {second!r}. The teacher's distribution belongs to its "
        "own prompt: the student may learn answers that do not fit what it reads, or collapse."
    ]


def get_common_prompt(example: Example) -> list[int]:
    """The teacher's token ids of what both models see: its prompt without `teacher_prompt`."""
    return list(example.get("common_prompt") or example["teacher_prompt"])


def read_prompts(example: Example, student: Any, teacher: Any) -> list[str]:
    """The texts of an example's two prompts; their tokens if the same text is tokenized differently."""
    prompts = ((student, example["prompt"]), (teacher, get_common_prompt(example)))
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for tokenizer, ids in prompts]
    if texts[0] != texts[1]:
        return texts
    return [" ".join(tokenizer.convert_ids_to_tokens(ids)) for tokenizer, ids in prompts]


def cut_at_difference(first: str, second: str) -> list[str]:
    """The parts of two texts around the place where they first differ.

    >>> cut_at_difference("You are a manager.", "You are a teacher.")
    ['You are a manager.', 'You are a teacher.']
    """
    place = len(commonprefix([first, second]))
    start, end = max(place - BEFORE, 0), place + AFTER
    return [("…" if start else "") + text[start:end] + ("…" if len(text) > end else "") for text in (first, second)]


def compare_ends(student: ChatTemplate, teacher: ChatTemplate) -> list[str]:
    """A sentence with both tokens if the models end an answer with different ones."""
    if student.end_of_turn == teacher.end_of_turn:
        return []
    first, second = (
        f"{chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn)!r} ({chat.end_of_turn})"
        for chat in (student, teacher)
    )
    return [
        f"The student ends an answer with the token {first}, the teacher with {second}. The teacher finds the "
        "student's token unlikely there, so the student may not learn to stop."
    ]
