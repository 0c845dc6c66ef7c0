"""Rotary position embeddings in GGUF files: which scalings llama.cpp computes as transformers does."""

import math
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

FACTORS = "rope_freqs.weight"  # name of the tensor that divides the frequencies
LOCAL_THETA = 10000.0  # base in the layers of Gemma 3 that attend to a window
# Settings of YaRN with the only value that llama.cpp computes; None stands for transformers' default.
YARN = {"beta_fast": (None, 32), "beta_slow": (None, 1), "mscale": (None,), "mscale_all_dim": (None,),
        "truncate": (None, True)}  # fmt: skip


def get_rope(config: Any) -> dict[str, Any]:
    """Parameters of the rotary embeddings, in Gemma 3 those of the layers that attend to all tokens."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def find_rope_problem(config: Any, has_factors: bool) -> str | None:
    """Return which parameter of the rotary embeddings llama.cpp does not know, with what is expected.

    Args:
        config: the model's configuration.
        has_factors: whether llama.cpp reads factors of single frequencies for the architecture, as llama3 needs.
    """
    rope = get_rope(config)
    kind = rope.get("rope_type", "default")
    is_split = "full_attention" in (getattr(config, "rope_parameters", None) or {})
    known = ["default", "linear"] if is_split else ["default", "linear", "yarn", *(["llama3"] if has_factors else [])]
    if kind not in known:
        return f"expected rope_type {' or '.join(known)} in config.json, found {kind!r}"
    part = rope.get("partial_rotary_factor", 1.0)
    if part != 1.0:
        return f"expected partial_rotary_factor 1.0 in config.json, found {part}"
    if kind == "yarn":
        for name, values in YARN.items():
            if rope.get(name) not in values:
                return f"expected {name} {values[-1]} in rope_parameters of config.json, found {rope[name]}"
        found, own = rope.get("attention_factor"), 0.1 * math.log(max(rope.get("factor") or 1.0, 1.0)) + 1.0
        if found is not None and not math.isclose(found, own, rel_tol=1e-3):
            return f"expected attention_factor {own:.4f} in rope_parameters of config.json, found {found}"
    if is_split:
        local = config.rope_parameters.get("sliding_attention", {})
        pair = (local.get("rope_type", "default"), local.get("rope_theta", LOCAL_THETA))
        if pair != ("default", LOCAL_THETA):
            place = "rope_parameters.sliding_attention"
            return f"expected {place} ('default', {LOCAL_THETA}) in config.json, found {pair}"
    return None


def add_rope(writer: Any, config: Any, width: int) -> None:
    """Add the rotary embeddings of heads of a width to the metadata."""
    rope = get_rope(config)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type({"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}[kind])
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def compute_factors(config: Any, width: int) -> NDArray[np.float32] | None:
    """The numbers by which Llama 3's scaling divides the frequencies, shape (width / 2,); None for other types.

    A frequency with a wavelength below the original context over `high_freq_factor` stays, one above the context over
    `low_freq_factor` is divided by `factor`, and between the two the share of each is linear in the frequency.
    """
    rope = get_rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    frequencies = rope.get("rope_theta", 10000.0) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (kept + (1.0 - kept) / rope["factor"])).astype(np.float32)
