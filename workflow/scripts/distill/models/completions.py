"""Completion positions: micro-batches, hidden states, logits and log-likelihoods."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, masking_utils

from distill.models.logits import IDENTITY, LogitTransform
from distill.models.packing import pack
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


def collate(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    row_length: int | None = None,
) -> dict[str, Tensor]:
    """Collate token ids to a micro-batch, padded on the right.

    A causal model then needs no attention mask, since tokens never attend to what follows them.

    Args:
        prompts: token ids of each prompt.
        completions: token ids of each completion.
        pad_id: token id of the padding.
        row_length: maximum number of tokens in a row that several records share; None gives each record a row.

    Returns:
        `input_ids` (rows, longest). `targets` (completion tokens,): the completions' token ids, concatenated.
        `positions` (completion tokens,): the positions that predict the targets, counted row by row over the batch.
        With a row for each record, also `lengths` (rows,): its tokens. With several in a row, also what keeps them
        apart: `position_ids` (rows, longest), and `boundaries` (sequences + 1,), where the sequences of all rows begin,
        counted as `positions` are, and the end of the last one; each token of padding is a sequence of its own.
    """
    records = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    lengths = [len(record) for record in records]
    rows = [[index] for index in range(len(records))] if row_length is None else pack(lengths, row_length)
    tokens = pad_rows([[token for index in row for token in records[index]] for row in rows], pad_id)
    starts = find_starts(rows, lengths, tokens.shape[1])
    places = [
        torch.arange(start + len(prompt) - 1, start + len(prompt) + len(completion) - 1)
        for start, prompt, completion in zip(starts, prompts, completions, strict=True)
    ]
    targets = torch.tensor([token for completion in completions for token in completion], dtype=torch.long)
    batch = {"input_ids": tokens, "positions": torch.cat(places), "targets": targets}
    if row_length is None:
        return batch | {"lengths": torch.tensor(lengths)}
    position_ids = pad_rows([[place for index in row for place in range(lengths[index])] for row in rows], 0)
    boundaries = find_boundaries(rows, lengths, tokens.shape[1])
    return batch | {"position_ids": position_ids, "boundaries": torch.tensor(boundaries, dtype=torch.int32)}


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Numbers as a tensor (rows, longest), padded on the right."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value)


def find_starts(rows: Sequence[Sequence[int]], lengths: Sequence[int], width: int) -> list[int]:
    """The position of each record's first token, counted row by row.

    Args:
        rows: the records in each row.
        lengths: tokens of each record.
        width: length of the rows with their padding.
    """
    starts = [0] * len(lengths)
    for row, members in enumerate(rows):
        place = row * width
        for index in members:
            starts[index] = place
            place += lengths[index]
    return starts


def find_boundaries(rows: Sequence[Sequence[int]], lengths: Sequence[int], width: int) -> list[int]:
    """Where the sequences of all rows begin, and the end; see `collate` and, for the arguments, `find_starts`."""
    padding = [
        place
        for row, members in enumerate(rows)
        for place in range(row * width + sum(lengths[index] for index in members), (row + 1) * width)
    ]
    return [*sorted([*find_starts(rows, lengths, width), *padding]), len(rows) * width]


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move tensors to a device; copies to a GPU are asynchronous."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def find_sequences_with(find: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Replace transformers' detection of packed sequences, which synchronises with the GPU in every forward pass.

    Args:
        find: the number of each token's sequence in its row, from the position ids, both (rows, length); None if the
            rows are not packed.
    """
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = find  # type: ignore[assignment]
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def read_batch(decoder: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the last hidden states of a micro-batch from `collate`, (rows, length, width)."""
    if "position_ids" in batch:
        return read_packed(decoder, batch["input_ids"], batch["position_ids"], batch["boundaries"])
    return read_hidden(decoder, batch["input_ids"], batch["lengths"])


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
    with find_sequences_with(lambda position_ids: None):
        return decoder(input_ids=input_ids, use_cache=False).last_hidden_state


def read_packed(decoder: Any, input_ids: Tensor, position_ids: Tensor, boundaries: Tensor) -> Tensor:
    """Compute the last hidden states of packed rows; `check_packing` tells whether a model keeps their records apart.

    From the position ids transformers makes a mask with which tokens attend to their own record only. The kernels of
    flash-attn need the boundaries instead, and read all rows as a single one.

    Args:
        decoder: from `decoder_and_head`.
        input_ids, position_ids, boundaries: see `collate`.

    Returns:
        (rows, length, width); those of padding have no meaning.
    """
    rows, length = input_ids.shape
    settings: dict[str, Any] = {}
    if decoder.config._attn_implementation.startswith("flash_attention"):
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        settings = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
        settings |= {"max_length_q": length, "max_length_k": length}
    with find_sequences_with(lambda position_ids: (position_ids == 0).cumsum(-1)):
        output = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **settings)
    return output.last_hidden_state.view(rows, length, -1)


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
