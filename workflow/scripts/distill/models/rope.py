"""Position embeddings (RoPE) that depend on the longest sequence of a batch.

With LongRoPE (Phi-3 with 128k tokens of context, Phi-4-mini), transformers computes a whole batch with the frequencies
of long sequences as soon as one of its rows is long. A short row beside it then gets other logits than alone. With
dynamic NTK scaling, a sequence beyond the original context changes the frequencies of later batches, too.
"""

from collections.abc import Sequence
from typing import Any

from distill.common.errors import InputError

# Types without RoPE that compute every position, or have none.
COMPUTED = ("jamba", "nemotron_h", "kimi_linear", "inkling_text", "inkling2_text", "xglm", "rwkv")


def list_rope(config: Any) -> list[dict[str, Any]]:
    """Return the RoPE parameters of a model's decoder, of all types of its layers."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [found] if "rope_type" in found else [one for one in found.values() if isinstance(one, dict)]


def find_rope_switch(config: Any) -> int | None:
    """Return the number of tokens beyond which a sequence has LongRoPE's long frequencies; None without LongRoPE."""
    limits = [one["original_max_position_embeddings"] for one in list_rope(config) if one["rope_type"] == "longrope"]
    return min(limits, default=None)


def context_length(config: Any) -> int | None:
    """Return the context length in tokens, prompt and answer together; None if the configuration gives none."""
    text = config.get_text_config(decoder=True)
    found = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)  # MPT has the latter
    return found if found and found > 0 else None  # XLNet has -1


def check_lengths(config: Any, lengths: Sequence[int], what: str, can_split: bool = True) -> None:
    """Check that no sequence changes the frequencies of others.

    Args:
        config: the model's configuration.
        lengths: tokens of each sequence.
        what: the model in words.
        can_split: whether the long and the short rows of a batch can be computed apart, as `read_hidden` does.

    Raises:
        InputError: a sequence is longer than the context of a model without RoPE, which has no embeddings for the
            positions behind it, or with dynamic scaling; or the model has LongRoPE, the sequences are on both sides of
            the switch, and batches cannot be split.
    """
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    switch = find_rope_switch(config)
    if not can_split and switch is not None and shortest <= switch < longest:
        raise InputError(
            f"max_length: expected at most {switch} tokens with packing, or with strategy fsdp and a batch_size above "
            f"1, because the position embeddings of {what} change there for all records of a batch, found longer and "
            "shorter records"
        )
    limit = context_length(config) or 0
    if config.get_text_config(decoder=True).model_type in COMPUTED:
        return
    kinds = [one["rope_type"] for one in list_rope(config)]
    if not 0 < limit < longest or (kinds and not any("dynamic" in kind for kind in kinds)):
        return
    reason = "dynamic NTK scaling would make later records depend on it" if kinds else "it has no further positions"
    raise InputError(
        f"expected records of at most {limit} tokens, the context of {what} ({reason}), found one of {longest} tokens; "
        "lower max_length, or remove such records"
    )
