"""Shards: a category's prompts split across several jobs."""

import argparse
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from distill.common.hashing import hash_uid


class Shard(NamedTuple):
    """One of `total` shards; `number` counts from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.total}"


def parse_shard(text: str) -> Shard:
    """Parse a shard on the command line, such as `1-of-4`.

    Raises:
        argparse.ArgumentTypeError: the text is not a shard.
    """
    match = re.fullmatch(r"([0-9]+)-of-([0-9]+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected I-of-N, such as 1-of-4, found {text!r}")
    shard = Shard(int(match[1]), int(match[2]))
    if not 1 <= shard.number <= shard.total:
        raise argparse.ArgumentTypeError(f"expected I-of-N with I from 1 to N, found {text!r}")
    return shard


def get_shard(uid: str, total: int) -> Shard:
    """Return a prompt's shard. It depends on the uid only: adding or removing a prompt does not move others."""
    return Shard(hash_uid("shard", 0, uid) % total + 1, total)


def select_shard(prompts: Iterable[dict[str, Any]], shard: Shard) -> list[dict[str, Any]]:
    """Return the prompts (each with its `uid`) of one shard in their order; the list may be empty."""
    return [prompt for prompt in prompts if get_shard(prompt["uid"], shard.total) == shard]
