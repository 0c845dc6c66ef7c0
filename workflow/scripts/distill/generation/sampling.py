"""What an answer is drawn from: the sampling, the request, and the random numbers of each record. No torch here."""

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 takes the most likely token (greedy).
        top_p: nucleus, 1 is off.
        top_k: most likely tokens kept, 0 is off.
        seed: of the records' random streams.
    """

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 42

    def digest_parts(self) -> dict[str, Any]:
        """What decides an answer: at temperature 0 nothing is drawn, so the rest does not count."""
        parts = asdict(self)
        return parts if self.temperature else {"max_new_tokens": self.max_new_tokens, "temperature": 0.0}


@dataclass(frozen=True)
class Request:
    """One answer to ask for: the prompt (`id` is its number in the file), and which of its samples (0 is the first)."""

    id: int
    uid: str
    system: str
    prompt: str
    sample: int = 0

    @property
    def key(self) -> str:
        """What the answer's random stream hangs on."""
        return f"{self.uid}#{self.sample}" if self.sample else self.uid


@dataclass(frozen=True)
class Generated:
    """One answer: its text without special tokens, `stop` or `length`, and its tokens with the end of the turn."""

    text: str
    finish_reason: str
    tokens: int
    prompt_tokens: int


def stream_digest(key: str, seed: int) -> int:
    """128 bits that belong to one answer, whatever else is asked beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:16], "big")


def record_uniforms(key: str, seed: int, count: int) -> "np.ndarray":
    """`count` uniform numbers in [0, 1) that belong to one answer, whatever batch it is in."""
    import numpy as np  # not at import time: Snakemake's own process imports this module

    return np.random.default_rng(stream_digest(key, seed)).random(count)
