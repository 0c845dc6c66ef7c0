"""Training examples: records of a split, tokenized for student and teacher."""

import logging
from collections.abc import Sequence
from typing import Any

from distill.common.errors import InputError
from distill.models.chat import encode_completion, encode_prompt

logger = logging.getLogger(__name__)

Example = dict[str, Any]


def encode_examples(
    records: Sequence[dict[str, Any]],
    student: Any,
    teacher: Any | None,
    max_length: int,
    vocabulary: int | None = None,
) -> list[Example]:
    """Tokenize records; leave out those that are too long or contain a token outside the shared vocabulary.

    Each model has the prompt in its own chat template. The tokens of the completion are the same for both models, so
    their positions correspond.

    Args:
        records: records from `read_split`, each with `uid`, `finish_reason` and three `messages`.
        student: the student's tokenizer.
        teacher: the online teacher's tokenizer; None without an online teacher.
        max_length: maximum number of tokens of prompt and completion, in either template.
        vocabulary: size of the shared vocabulary, from `shared_vocabulary_size`.

    Returns:
        Examples with `uid` and the token ids of `prompt`, `completion` and, with a teacher, `teacher_prompt`.

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
        logger.warning("%d of %d records left out: a token is not in the teacher's vocabulary", foreign, len(records))
    if records and not examples:
        raise InputError(f"{left_out} of {len(records)} records are longer than max_length = {max_length}; raise it")
    if left_out:
        logger.warning("%d of %d records left out: longer than max_length = %d", left_out, len(records), max_length)
    return examples
