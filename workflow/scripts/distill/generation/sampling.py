"""What an answer is drawn from: the sampling, the request, and the random numbers of each record. No torch here."""

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

from distill.common.options import SEED, option


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    max_new_tokens: int = option(
        "Maximum length of an answer in tokens.",
        512,
        minimum=1,
        when="Higher if answers are cut off (`finish_reason` is `length`).",
    )
    temperature: float = option(
        "Sampling temperature; 0 is greedy decoding.",
        0.7,
        minimum=0,
        when="0 for the most likely answer, higher for more varied ones.",
    )
    top_p: float = option(
        "Nucleus sampling: sample from the most likely tokens with this total probability; 1 disables it.",
        1.0,
        exclusiveMinimum=0,
        maximum=1,
        when="Below 1 if sampled answers go astray.",
    )
    top_k: int = option(
        "Sample from this many most likely tokens; 0 disables it.",
        0,
        minimum=0,
        when="Above 0 if sampled answers go astray.",
    )
    seed: int = option(
        "Seed of the sampling, combined with each record's uid.", 42, **SEED, when="For another set of samples."
    )

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
