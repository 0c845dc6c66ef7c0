"""How likely a model finds given answers: the sums that perplexity is made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from distill.models.batches import AUTO_BATCH_SIZE, in_batches
from distill.models.chat import encode_completion, encode_prompt
from distill.models.completions import collate, decoder_and_head, read_hidden, score_rows, take_rows, to_device


class Likelihood(NamedTuple):
    """Of one answer: its negative log-likelihood in nats, its tokens, and how many of them are the likeliest."""

    nll: float
    tokens: int
    hits: int


def answer_likelihoods(
    model: Any, tokenizer: Any, records: Sequence[dict[str, Any]], batch_size: int | None = None
) -> list[Likelihood]:
    """How likely a model finds each record's `answer` after its prompt.

    Tokens are those of the completion with the end of its turn; the prompt's never count.

    Args:
        records: each with `system`, `prompt`, `answer` and `is_whole` (of `encode_completion`).
        batch_size: as in `generate_requests`.
    """
    decoder, head = decoder_and_head(model)
    prompts = [encode_prompt(tokenizer, record["system"], record["prompt"]) for record in records]
    completions = [encode_completion(tokenizer, record["answer"], record["is_whole"]) for record in records]
    order = sorted(range(len(records)), key=lambda row: -len(prompts[row]) - len(completions[row]))

    @torch.inference_mode()
    def score(rows: list[int]) -> list[tuple[int, Likelihood]]:
        batch = collate([prompts[row] for row in rows], [completions[row] for row in rows], tokenizer.pad_token_id)
        batch = to_device(batch, model.device)
        hidden = take_rows(read_hidden(decoder, batch["input_ids"]), batch["positions"])
        sizes = [len(completions[row]) for row in rows]
        losses, hits = (found.split(sizes) for found in score_rows(hidden, head, batch["targets"]))
        return [
            (row, Likelihood(loss.double().sum().item(), len(loss), int(hit.sum())))
            for row, loss, hit in zip(rows, losses, hits, strict=True)
        ]

    size = batch_size or AUTO_BATCH_SIZE[model.device.type]
    found = dict(pair for batch in in_batches(order, score, size) for pair in batch)
    return [found[row] for row in range(len(records))]
