"""Disk space of a cached teacher signal, estimated before it is computed. Imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.common.files import read_jsonl

ID_BYTES, HALF_BYTES = 4, 2  # int32, and bfloat16 or float16


def bytes_per_token(
    kind: str, width: int | None = None, top_k: int | None = None, temperatures: Sequence[float] = ()
) -> int:
    """Return the bytes that a signal takes per completion token, including the token's id.

    `hidden` takes 2 bytes per element of the hidden state. `topk` takes 4 bytes for an id and 2 for a log-probability,
    k times, and 2 for the tail at each temperature.

    Args:
        kind: `hidden` or `topk`.
        width: size of the teacher's hidden states, for `hidden`.
        top_k, temperatures: settings of `topk`.
    """
    if kind == "hidden":
        return HALF_BYTES * (width or 0) + ID_BYTES
    return (ID_BYTES + HALF_BYTES) * (top_k or 0) + HALF_BYTES * len(temperatures) + ID_BYTES


def count_tokens(answers: str | Path, prompts: str | Path, max_new_tokens: int) -> tuple[int, str]:
    """Estimate a category's completion tokens.

    Args:
        answers: the teacher's answers; their usable ones are counted, including those of the test split.
        prompts: the prompts; without answers, each counts as an answer of the maximum length.
        max_new_tokens: maximum length of an answer.

    Returns:
        The number of tokens and its qualifier, `about ` or `at most `; (0, "") if neither file exists.
    """
    if Path(answers).exists():
        return sum(
            record["generated_tokens"] for _, record in read_jsonl(answers) if record.get("usable", True)
        ), "about "
    if Path(prompts).exists():
        with open(prompts, "rb") as file:
            return sum(1 for line in file if line.strip()) * max_new_tokens, "at most "
    return 0, ""


def get_hidden_width(model: str) -> int | None:
    """Return the size of a model's hidden states; None if the model is neither a local folder nor downloaded."""
    path: Any = Path(model) / "config.json"
    if not path.exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            path = None
    if not isinstance(path, str | Path):
        return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the job that loads the model reports the error
    width = config.get("text_config", config).get("hidden_size") if isinstance(config, dict) else None
    return width if isinstance(width, int) else None


def describe_storage(
    name: str,
    kind: str,
    width: int | None,
    top_k: int | None,
    temperatures: Sequence[float],
    tokens: int,
    qualifier: str = "",
) -> str:
    """Return a line with bytes per token, tokens and gigabytes (10⁹ bytes).

    Args:
        name: name of the signal in the line.
        kind, width, top_k, temperatures: see `bytes_per_token`.
        tokens: number of completion tokens; 0 if it is unknown.
        qualifier: text before the number of tokens, with a space: `about `, `at most `.
    """
    if kind == "hidden" and width is None:
        return f"teacher signal {name}: 2 bytes per element of a hidden state (its size is unknown until the download)"
    size = bytes_per_token(kind, width, top_k, temperatures)
    if not tokens:
        return f"teacher signal {name}: {size:,} bytes per completion token (total unknown until the prompts exist)"
    total = f"{qualifier}{tokens:,} tokens, {size * tokens / 1e9:.3g} GB"
    return f"teacher signal {name}: {size:,} bytes per token, {total}"
