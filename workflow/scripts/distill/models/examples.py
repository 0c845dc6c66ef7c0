"""Training examples: records of a split as tokens for student and teacher."""

import logging
from collections.abc import Sequence
from typing import Any

from distill.common.errors import InputError
from distill.models.chat import encode_completion, encode_prompt

logger = logging.getLogger(__name__)


def encode_examples(
    records: Sequence[dict[str, Any]],
    student: Any,
    teacher: Any | None,
    max_length: int,
    vocabulary: int | None = None,
) -> list[dict[str, Any]]:
    """Tokenize records; those longer than `max_length`, or with a token that only the student knows, are left out.

    The completion's tokens are the same for both models, so that their positions pair up; each model reads the
    prompt in its own chat template.

    Args:
        records: of `read_split`, each with `uid`, `finish_reason` and three `messages`.
        student: its tokenizer.
        teacher: the online teacher's tokenizer, None without one.
        max_length: tokens of prompt and completion, in either template.
        vocabulary: of `shared_vocabulary_size`.

    Raises:
        InputError: no record is left.
    """
    examples, foreign = [], 0
    for record in records:
        system, prompt, answer = (message["content"] for message in record["messages"])
        example = {
            "uid": record["uid"],
            "prompt": encode_prompt(student, system, prompt),
            "completion": encode_completion(student, answer, record["finish_reason"] != "length"),
        }
        if teacher is not None:
            example["teacher_prompt"] = encode_prompt(teacher, system, prompt)
            if max(example["completion"], default=0) >= (vocabulary or 0):
                foreign += 1
                continue
        longest = max(len(example["prompt"]), len(example.get("teacher_prompt", [])))
        if longest + len(example["completion"]) <= max_length:
            examples.append(example)
    left_out = len(records) - len(examples) - foreign
    if foreign:
        logger.warning("%d of %d records left out: a token that the teacher does not know", foreign, len(records))
    if records and not examples:
        raise InputError(f"{left_out} of {len(records)} records are longer than max_length = {max_length}; raise it")
    if left_out:
        logger.warning("%d of %d records left out: longer than max_length = %d", left_out, len(records), max_length)
    return examples


Example = dict[str, Any]
