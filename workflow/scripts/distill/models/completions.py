"""Completion positions: their hidden states, their tokens, and how likely a model finds these."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils


def decoder_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The part of a model that gives the last hidden states, and the head that projects them to logits."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return base.get_decoder(), base.get_output_embeddings()


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


def right_pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(rows, longest) token ids, padded on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows])


def collate(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """A micro-batch: `input_ids` (batch, longest), padded on the right; `positions` and `targets` (completion tokens,).

    A causal model needs no attention mask then: no token looks at what is right of it. `positions` are those that
    predict the `targets`, in the batch's tokens counted row by row.
    """
    both = zip(prompts, completions, strict=True)
    tokens = right_pad([[*prompt, *completion] for prompt, completion in both], pad_id)
    length = tokens.shape[1]
    starts = [row * length + len(prompt) - 1 for row, prompt in enumerate(prompts)]
    places = [
        torch.arange(start, start + len(completion)) for start, completion in zip(starts, completions, strict=True)
    ]
    targets = torch.tensor([token for completion in completions for token in completion], dtype=torch.long)
    return {"input_ids": tokens, "positions": torch.cat(places), "targets": targets}


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors on their device; to a GPU without waiting for the copy."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def project(rows: Tensor, head: Head) -> Tensor:
    """The teacher's logits, in the numbers that its head has."""
    weight = getattr(head, "weight", None)
    return head(rows.to(weight.dtype) if weight is not None and weight.is_floating_point() else rows)
