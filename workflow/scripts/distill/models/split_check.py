"""A probe that decoder and head, called separately, give the logits of a model."""

import math
from typing import Any

import torch
from torch import Tensor

from distill.common.errors import InputError
from distill.models.batches import is_out_of_memory
from distill.models.completions import decoder_and_head, project, read_hidden
from distill.models.logits import read_transform

PROBE_TOKENS = 8
PROBE_LOGIT = 64.0  # about the largest output of the head
# Largest difference between two ways to compute the same logits, as a share of the largest logit. Rounding in 16 bits
# gives below 0.01.
TOLERANCE = 0.03
# What models raise in forward passes that they do not support.
ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@torch.no_grad()
def check_split(name: str, model: Any) -> None:
    """Check that decoder, head and `read_transform` give the model's logits, and that padding on the right is harmless.

    Args:
        name: of the model, for messages.
        model: causal model on its device, with or without an adapter.

    Raises:
        InputError: the model cannot be run, has no separate decoder and head, or computes other logits; names the
            difference.
    """
    kind, was_training = type(model).__name__, model.training
    ids = make_probe(model)
    model.eval()
    try:
        model(input_ids=ids, use_cache=False)
        found, own = probe_logits(model, ids)
        short, long = probe_padding(model, ids)
    except ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{name}: {kind} is not supported: its decoder and head cannot be run: {error}") from error
    finally:
        model.train(was_training)
    if found.shape != own.shape:
        rows = f"{found.shape[-1]}, found {own.shape[-1]}"
        raise InputError(f"{name}: {kind} is not supported: expected one logit per row of the head, {rows}")
    if difference := compare(found, own, TOLERANCE):
        raise InputError(
            f"{name}: {kind} is not supported: it changes hidden states or logits in a way that training would miss; "
            f"compared with decoder and head, its logits differ by {difference}"
        )
    if difference := compare(short, long, TOLERANCE):
        raise InputError(
            f"{name}: {kind} is not supported: what follows a token must not change it, but with other tokens behind "
            f"them, hidden states differ by {difference}"
        )


def compare(found: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """Describe the largest difference of two tensors; None if it is rounding, at most `tolerance` times the largest."""
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if difference <= tolerance * largest:
        return None
    return f"up to {difference:.3g} (the largest is {largest:.3g})"  # also for NaN


def make_probe(model: Any) -> Tensor:
    """Random token ids on the model's device, (1, PROBE_TOKENS); the same in every call."""
    rows = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows, (1, PROBE_TOKENS), generator=generator).to(model.device)


def probe_logits(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of token ids by decoder, head and transform, and by the model itself; (tokens, vocabulary) each.

    The head's output is scaled up in both: a soft cap would not show in the small logits of an untrained model.
    """
    decoder, head = decoder_and_head(model)
    rows = read_hidden(decoder, ids)[0]
    largest = project(rows, head).abs().max().clamp(min=1e-6).item()
    factor = 2.0 ** round(math.log2(PROBE_LOGIT / largest))  # a power of two, which rounds nothing
    hook = head.register_forward_hook(lambda module, inputs, output: output * factor)
    try:
        found = project(rows, head, read_transform(model.config)).float()
        own = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    return found.to(own.device), own


def probe_padding(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states of the first half of token ids, followed by padding and by the second half, (tokens, width)."""
    decoder, _ = decoder_and_head(model)
    half = ids.shape[1] // 2
    pad = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None) or 0
    padded = torch.cat([ids[:, :half], torch.full_like(ids[:, half:], pad)], dim=1)
    hidden = read_hidden(decoder, torch.cat([padded, ids]))[:, :half].float()
    return hidden[0], hidden[1]
