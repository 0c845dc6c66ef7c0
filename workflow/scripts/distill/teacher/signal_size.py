"""What a cached teacher signal takes on disk, said before it is spent. No torch here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.common.files import read_jsonl

ID_BYTES, HALF_BYTES = 4, 2  # int32, and bfloat16 or float16


def bytes_per_token(
    kind: str, width: int | None = None, top_k: int | None = None, temperatures: Sequence[float] = ()
) -> int:
    """Bytes that a completion token takes in a signal, its own id with them.

    hidden: 2 a number of the hidden state. topk: 4 for an id and 2 for a log-probability, k times, and 2 for the tail
    at each temperature.

    Args:
        width: of the teacher's hidden states; of `hidden`.
        top_k, temperatures: of `topk`.
    """
    if kind == "hidden":
        return HALF_BYTES * (width or 0) + ID_BYTES
    return (ID_BYTES + HALF_BYTES) * (top_k or 0) + HALF_BYTES * len(temperatures) + ID_BYTES


def count_tokens(answers: str | Path, prompts: str | Path, max_new_tokens: int) -> tuple[int, str]:
    """Completion tokens of a category, and what qualifies them.

    `about` those of the usable answers where the teacher has answered (the test split's are among them, the tokens
    that end a turn are not); else `at most` what its prompts may be answered with; 0 where there is neither.
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
    """Width of a model's hidden states, from a folder or a downloaded hub id; None where neither is there."""
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
        return None  # the job that loads it says what is wrong
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
    """A line: bytes a token, tokens, gigabytes (10⁹ bytes).

    Args:
        qualifier: before the tokens, with a space: `about `, `at most `.
    """
    if kind == "hidden" and width is None:
        return f"teacher signal {name}: 2 bytes for each number of a hidden state (the width is not known yet)"
    size = bytes_per_token(kind, width, top_k, temperatures)
    if not tokens:
        return f"teacher signal {name}: {size:,} bytes a completion token (how many, the prompts will tell)"
    total = f"{qualifier}{tokens:,} tokens, {size * tokens / 1e9:.3g} GB"
    return f"teacher signal {name}: {size:,} bytes a token, {total}"
