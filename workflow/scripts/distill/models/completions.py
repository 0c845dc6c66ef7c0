"""Completion positions: micro-batches, hidden states, logits and log-likelihoods."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, masking_utils

from distill.models.logits import IDENTITY, LogitTransform
from distill.models.rope import find_rope_switch

CHUNK_ROWS = 256  # rows projected to logits at a time

Head = Callable[[Tensor], Tensor]


def decoder_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the decoder, which computes the last hidden states, and the head, which projects them to logits.

    `check_split` tells whether the two give the model's logits.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # an adapter's own head, beside the model's
        head = head.modules_to_save[head.active_adapters[0]]
    return find_decoder(base), head


def find_decoder(model: Any) -> torch.nn.Module:
    """Return the part of a model that computes the last hidden states.

    `get_decoder` of transformers knows certain names: Llama 4's decoder has another one, and a model with images may
    return its text model with the head.
    """
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, PreTrainedModel):
        inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
        return inner[0] if len(inner) == 1 else decoder
    return decoder if decoder.get_output_embeddings() is None else find_decoder(decoder)


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Collate token ids to a micro-batch, padded on the right.

    A causal model then needs no attention mask, since tokens never attend to what follows them.

    Args:
        prompts: token ids of each prompt.
        completions: token ids of each completion.
        pad_id: token id of the padding.

    Returns:
        `input_ids` (batch, longest). `lengths` (batch,): tokens of each row. `targets` (completion tokens,): the
        completions' token ids, concatenated.
        `positions` (completion tokens,): the positions that predict the targets, counted row by row over the batch.
    """
    both = zip(prompts, completions, strict=True)
    rows = [torch.tensor([*prompt, *completion], dtype=torch.long) for prompt, completion in both]
    tokens = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    length = tokens.shape[1]
    starts = [row * length + len(prompt) - 1 for row, prompt in enumerate(prompts)]
    places = [
        torch.arange(start, start + len(completion)) for start, completion in zip(starts, completions, strict=True)
    ]
    targets = torch.tensor([token for completion in completions for token in completion], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": tokens, "lengths": lengths, "positions": torch.cat(places), "targets": targets}


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move tensors to a device; copies to a GPU are asynchronous."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def without_packing() -> Iterator[None]:
    """Skip transformers' detection of packed sequences, which synchronises with the GPU in every forward pass."""
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def read_hidden(decoder: Any, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Compute the last hidden states of right-padded sequences, without an attention mask.

    If the model's position embeddings depend on the longest row (see `rope`), long and short rows are computed apart.

    Args:
        decoder: from `decoder_and_head`.
        input_ids: (batch, length).
        lengths: (batch,) tokens of each row; None if no row is padded.

    Returns:
        (batch, length, width); those of padding have no meaning.
    """
    switch = find_rope_switch(decoder.config)
    if lengths is not None and switch is not None and input_ids.shape[1] > switch and (lengths <= switch).any():
        is_short = lengths <= switch
        short = read_hidden(decoder, input_ids[is_short, :switch])
        parts = [torch.nn.functional.pad(short, (0, 0, 0, input_ids.shape[1] - switch))]
        if not is_short.all():
            parts.append(read_hidden(decoder, input_ids[~is_short]))
        order = torch.cat([is_short.nonzero(), (~is_short).nonzero()]).flatten()
        return torch.cat(parts)[order.argsort()]
    with without_packing():
        return decoder(input_ids=input_ids, use_cache=False).last_hidden_state


def take_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """Select the hidden states at given positions, without synchronising with the GPU.

    Args:
        hidden: (batch, length, width).
        positions: (rows,) positions from `collate`.

    Returns:
        (rows, width).
    """
    return hidden.flatten(0, 1).index_select(0, positions)


def project(rows: Tensor, head: Head, transform: LogitTransform = IDENTITY) -> Tensor:
    """Project hidden states to logits: in the head's dtype, or in float32 if the model changes them after the head.

    Args:
        rows: (rows, width) hidden states.
        head: from `decoder_and_head`.
        transform: what the model does to its logits after the head.

    Returns:
        (rows, vocabulary).
    """
    weight = getattr(head, "weight", None)
    raw = head(rows.to(weight.dtype) if weight is not None and weight.is_floating_point() else rows)
    return raw if transform.is_identity else transform.apply(raw.float())


def score_rows(
    rows: Tensor, head: Head, targets: Tensor, transform: LogitTransform = IDENTITY, chunk: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Compute each target's negative log-likelihood, and whether it is the most likely token; without gradients.

    Args:
        rows: (rows, width) hidden states.
        head: from `decoder_and_head`.
        targets: (rows,) token ids.
        transform: what the model does to its logits after the head.
        chunk: number of rows projected at a time.

    Returns:
        (rows,) float32 in nats; (rows,) bool.
    """
    losses, hits = [torch.zeros(0, device=rows.device)], [torch.zeros(0, dtype=torch.bool, device=rows.device)]
    with torch.no_grad():
        for part, target in zip(rows.split(chunk), targets.split(chunk), strict=True):
            logits = transform.apply(head(part).float())
            losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
            hits.append(logits.argmax(dim=-1) == target)
    return torch.cat(losses), torch.cat(hits)
