"""Likelihoods of given answers: the sums that perplexity is computed from."""

from collections.abc import Sequence
from typing import Any

from distill.generation.engine import CompletionScore, ScoringEngine


def answer_likelihoods(engine: ScoringEngine, records: Sequence[dict[str, Any]]) -> list[CompletionScore]:
    """Score each record's `answer` given its prompt.

    The tokens are those of the completion, including the end of its turn; prompt tokens do not count.

    Args:
        engine: gives the likelihoods.
        records: each with `system`, `prompt`, `answer` and `is_whole` (see `ChatTemplate.encode_completion`).
    """
    chat = engine.chat
    prompts = [chat.encode_prompt(record["system"], record["prompt"]) for record in records]
    completions = [chat.encode_completion(record["answer"], record["is_whole"]) for record in records]
    for completion in completions:
        chat.check_ids(completion)
    chat.log_control_tokens([record["answer"]] for record in records)
    return engine.score_completions(prompts, completions)
