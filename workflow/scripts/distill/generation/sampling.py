"""Sampling settings, requests and answers, and each answer's random numbers. Imports no torch."""

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        max_new_tokens: maximum length of an answer in tokens.
        temperature: sampling temperature; 0 is greedy decoding.
        top_p: nucleus sampling threshold; 1 disables it.
        top_k: number of most likely tokens to sample from; 0 disables it.
        seed: seed of all answers' random streams.
    """

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 42

    def digest_parts(self) -> dict[str, Any]:
        """Return the settings that determine an answer; with greedy decoding, seed, top_p and top_k do not."""
        parts = asdict(self)
        return parts if self.temperature else {"max_new_tokens": self.max_new_tokens, "temperature": 0.0}


@dataclass(frozen=True)
class Request:
    """A request for one answer.

    Attributes:
        id: number of the prompt in its file.
        uid: digest of the prompt's content.
        system, prompt: texts of the system and the user message.
        sample: which of the prompt's answers this is, from 0.
    """

    id: int
    uid: str
    system: str
    prompt: str
    sample: int = 0

    @property
    def key(self) -> str:
        """Name of the answer's random stream."""
        return f"{self.uid}#{self.sample}" if self.sample else self.uid


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Attributes:
        text: the answer without special tokens.
        finish_reason: `stop` at the end of the turn, `length` if it was cut off.
        tokens: number of generated tokens, including the end of the turn.
        prompt_tokens: number of the prompt's tokens.
    """

    text: str
    finish_reason: str
    tokens: int
    prompt_tokens: int


def stream_digest(key: str, seed: int) -> int:
    """Return 128 bits that depend on the answer's key and the seed only, not on other requests."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:16], "big")


def record_uniforms(key: str, seed: int, count: int) -> "np.ndarray":
    """Return (count,) uniform numbers in [0, 1) that depend on the answer's key and the seed only, not on its batch."""
    import numpy as np  # not at import time: Snakemake's own process imports this module

    return np.random.default_rng(stream_digest(key, seed)).random(count)
