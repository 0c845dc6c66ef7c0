"""Batches of examples, padded on the right."""

from collections.abc import Sequence

import torch


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
