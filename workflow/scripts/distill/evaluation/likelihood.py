"""Likelihoods of given answers: the sums that perplexity is computed from."""

from collections.abc import Sequence
from typing import Any

from distill.generation.engine import CompletionScore, ScoringEngine
from distill.models.chat import encode_completion, encode_prompt


def answer_likelihoods(engine: ScoringEngine, records: Sequence[dict[str, Any]]) -> list[CompletionScore]:
    """Score each record's `answer` given its prompt.

    The tokens are those of the completion, including the end of its turn; prompt tokens do not count.

    Args:
        engine: gives the likelihoods.
        records: each with `system`, `prompt`, `answer` and `is_whole` (see `encode_completion`).
    """
    prompts = [encode_prompt(engine.tokenizer, record["system"], record["prompt"]) for record in records]
    completions = [encode_completion(engine.tokenizer, record["answer"], record["is_whole"]) for record in records]
    return engine.score_completions(prompts, completions)
