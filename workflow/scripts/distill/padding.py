"""Batches of examples, padded on the right."""

from collections.abc import Sequence

import torch

IGNORE = -100  # the label of a token that is not of the completion


def right_pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(rows, longest) token ids, padded on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows])


def pad_examples(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels` (IGNORE but on completion tokens), each (rows, longest)."""
    both = list(zip(prompts, completions, strict=True))
    return {
        "input_ids": right_pad([[*prompt, *completion] for prompt, completion in both], pad_id),
        "attention_mask": right_pad([[1] * (len(prompt) + len(completion)) for prompt, completion in both], 0),
        "labels": right_pad([[IGNORE] * len(prompt) + list(completion) for prompt, completion in both], IGNORE),
    }
