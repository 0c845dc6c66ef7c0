"""A probe that a model keeps the records of a packed row apart."""

from typing import Any

import torch
from torch import Tensor

from distill.common.errors import InputError
from distill.models.batches import is_out_of_memory
from distill.models.completions import collate, decoder_and_head, read_batch, take_rows, to_device
from distill.models.split_check import ERRORS, TOLERANCE, compare

PROBE_SHARES = (2, 4, 8, 4)  # a row has this many records of such a length; the last one shares no row with the others
# Largest difference of hidden states in float32, as a share of the largest one. Rounding gives below 0.00001.
EXACT_TOLERANCE = 1e-4
ADVICE = "set train.packing to false"


@torch.no_grad()
def check_packing(name: str, model: Any, row_length: int) -> None:
    """Check that packed records have the hidden states that each has in a row of its own.

    The probe's rows are as long as those of the training: windows, chunks and sparse attention begin at some length.

    Args:
        name: of the model, for messages.
        model: causal model on its device, with or without an adapter, that `check_split` accepts.
        row_length: maximum number of tokens in a row.

    Raises:
        InputError: the model cannot read packed rows, or a record depends on others; names the difference.
    """
    kind, was_training = type(model).__name__, model.training
    is_exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    model.eval()
    try:
        records = make_records(model, row_length)
        alone, packed = read_records(model, records, None), read_records(model, records, row_length)
    except ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{name}: train.packing: {kind} cannot read packed records ({error}); {ADVICE}") from error
    finally:
        model.train(was_training)
    if difference := compare(packed, alone, EXACT_TOLERANCE if is_exact else TOLERANCE):
        raise InputError(
            f"{name}: train.packing: expected a model that keeps the records of a row apart, but with others in their "
            f"row, the hidden states of {kind} differ by {difference}; {ADVICE}"
        )


def make_records(model: Any, row_length: int) -> list[list[int]]:
    """Random token ids of at least two tokens, by PROBE_SHARES; the same in every call."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    lengths = [max(row_length // share, 2) for share in PROBE_SHARES]
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def read_records(model: Any, records: list[list[int]], row_length: int | None) -> Tensor:
    """The hidden states of each record's tokens but the last, in float32, (tokens, width)."""
    decoder, _ = decoder_and_head(model)
    batch = collate([record[:1] for record in records], [record[1:] for record in records], 0, row_length)
    batch = to_device(batch, model.device)
    return take_rows(read_batch(decoder, batch), batch["positions"]).float()
