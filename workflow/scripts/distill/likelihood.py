"""How likely a model finds given answers: the sums that perplexity is made of."""

from collections.abc import Sequence
from typing import Any

import torch

from distill.batches import AUTO_BATCH_SIZE, in_batches
from distill.chat import encode_completion, encode_prompt
from distill.completions import cross_entropy_rows, read_hidden, take_rows
from distill.models import decoder_and_head
from distill.padding import collate, to_device


def reference_likelihoods(
    model: Any, tokenizer: Any, records: Sequence[dict[str, Any]], batch_size: int | None = None
) -> list[tuple[float, int]]:
    """(negative log-likelihood in nats, tokens) of each record's `reference` after its prompt.

    Tokens are those of the completion with the end of its turn; the prompt's never count.

    Args:
        records: each with `system`, `prompt`, `reference` and `is_whole` (of `encode_completion`).
        batch_size: as in `generate_requests`.
    """
    decoder, head = decoder_and_head(model)
    prompts = [encode_prompt(tokenizer, record["system"], record["prompt"]) for record in records]
    completions = [encode_completion(tokenizer, record["reference"], record["is_whole"]) for record in records]
    order = sorted(range(len(records)), key=lambda row: -len(prompts[row]) - len(completions[row]))

    @torch.inference_mode()
    def score(rows: list[int]) -> list[tuple[int, float]]:
        batch = collate([prompts[row] for row in rows], [completions[row] for row in rows], tokenizer.pad_token_id)
        batch = to_device(batch, model.device)
        hidden = take_rows(read_hidden(decoder, batch["input_ids"]), batch["positions"])
        losses = cross_entropy_rows(hidden, head, batch["targets"])
        sizes = [len(completions[row]) for row in rows]
        return [(row, part.double().sum().item()) for row, part in zip(rows, losses.split(sizes), strict=True)]

    size = batch_size or AUTO_BATCH_SIZE[model.device.type]
    sums = dict(pair for batch in in_batches(order, score, size) for pair in batch)
    return [(sums[row], len(completions[row])) for row in range(len(records))]
