"""Likelihoods of given answers: the sums that perplexity is computed from."""

from collections.abc import Sequence
from typing import Any

from distill.generation.engine import CompletionScore, ScoringEngine
from distill.records.conversations import read_conversation, read_teacher_conversation


def answer_likelihoods(
    engine: ScoringEngine, records: Sequence[dict[str, Any]], is_teacher: bool = False
) -> list[CompletionScore]:
    """Score each record's `answer` given its prompt.

    The tokens are those of the completion, including the end of its turn; prompt tokens do not count.

    Args:
        engine: gives the likelihoods.
        records: each with `answer`, `is_whole` (see `ChatTemplate.encode_completion`) and the fields of a prompt, see
            `records/conversations.py`.
        is_teacher: whether the model is the teacher, which sees `teacher_prompt`.
    """
    chat = engine.chat
    read = read_teacher_conversation if is_teacher else read_conversation
    prompts = [chat.encode_conversation(read(record)) for record in records]
    completions = [chat.encode_completion(record["answer"], record["is_whole"]) for record in records]
    for completion in completions:
        chat.check_ids(completion)
    chat.log_control_tokens([record["answer"]] for record in records)
    return engine.score_completions(prompts, completions)
