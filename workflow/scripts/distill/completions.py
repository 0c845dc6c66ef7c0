"""Completion positions: their hidden states, their tokens, and how likely a model finds these."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

CHUNK_ROWS = 256  # rows projected to logits at a time

Head = Callable[[Tensor], Tensor]


@contextmanager
def without_packing() -> Iterator[None]:
    """Have transformers not look whether sequences are packed, which each forward pass would wait for on a GPU."""
    found = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def read_hidden(decoder: Any, input_ids: Tensor) -> Tensor:
    """(batch, length, width) last hidden states of sequences that are padded on the right, one a row: no mask."""
    with without_packing():
        return decoder(input_ids=input_ids, use_cache=False).last_hidden_state


def take_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states at given places, without a look at the labels: on a GPU nothing waits for their number.

    Args:
        hidden: (batch, length, width).
        positions: (rows,) places in the batch's tokens counted row by row, of `collate`.

    Returns:
        (rows, width).
    """
    return hidden.flatten(0, 1).index_select(0, positions)


def score_rows(rows: Tensor, head: Head, targets: Tensor, chunk: int = CHUNK_ROWS) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target, and whether it is the likeliest token; for scoring, without gradients.

    Args:
        rows: (rows, width) hidden states.
        targets: (rows,) token ids.

    Returns:
        (rows,) float32 in nats, and (rows,) bool.
    """
    losses, hits = [torch.zeros(0, device=rows.device)], [torch.zeros(0, dtype=torch.bool, device=rows.device)]
    with torch.no_grad():
        for part, target in zip(rows.split(chunk), targets.split(chunk), strict=True):
            logits = head(part).float()
            losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
            hits.append(logits.argmax(dim=-1) == target)
    return torch.cat(losses), torch.cat(hits)
