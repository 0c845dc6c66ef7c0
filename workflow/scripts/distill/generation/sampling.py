"""Sampling settings, requests and answers, and each answer's random numbers. Imports no torch."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

from distill.common.options import SEED, option
from distill.records.conversations import (
    Conversation,
    Message,
    ask,
    read_conversation,
    read_teacher_conversation,
)


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
        turns: all messages after the system text, if there are more than the user's.
        tools: JSON schemas of the functions that the assistant may call.
    """

    id: int
    uid: str
    system: str
    prompt: str
    sample: int = 0
    turns: Sequence[Message] = field(default=(), hash=False)
    tools: Sequence[dict[str, Any]] = field(default=(), hash=False)

    @property
    def conversation(self) -> Conversation:
        """What the model is asked."""
        plain = ask(self.system, self.prompt)
        return Conversation(self.system, self.turns or plain.turns, self.tools)

    @property
    def key(self) -> str:
        """Name of the answer's random stream."""
        return f"{self.uid}#{self.sample}" if self.sample else self.uid


def make_request(record: Mapping[str, Any], sample: int = 0, to_teacher: bool = False) -> Request:
    """Return a record of a prompt as a request.

    Args:
        record: `id`, `uid` and the fields of `records/conversations.py`.
        sample: which of the prompt's answers is requested.
        to_teacher: whether `teacher_prompt` stands before the system text.
    """
    asked = (read_teacher_conversation if to_teacher else read_conversation)(record)
    prompt, turns = record["prompt"], record.get("turns") or ()
    return Request(record["id"], record["uid"], asked.system, prompt, sample, turns, asked.tools)


def name_conversations(requests: Iterable[Request], where: str) -> Iterator[tuple[str, Conversation]]:
    """Yield (name for messages, conversation) of each request in a file of prompts."""
    return ((f"{where}: id {one.id} (uid {one.uid})", one.conversation) for one in requests)


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Attributes:
        text: the answer without the end of the turn.
        finish_reason: `stop` at the end of the turn, `length` if it was cut off.
        tokens: number of generated tokens, including the end of the turn.
        prompt_tokens: number of the prompt's tokens.
    """

    text: str
    finish_reason: str
    tokens: int
    prompt_tokens: int


def drop_cut_character(text: str, finish_reason: str) -> str:
    """Return an answer without the character that the maximum length cut in its middle.

    A character may be several tokens, and decoding the first of them gives U+FFFD at the end of the text.
    """
    return text.rstrip("\N{REPLACEMENT CHARACTER}") if finish_reason == "length" else text


def stream_digest(key: str, seed: int) -> int:
    """Return 128 bits that depend on the answer's key and the seed only, not on other requests."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:16], "big")


def record_uniforms(key: str, seed: int, count: int) -> "np.ndarray":
    """Return (count,) uniform numbers in [0, 1) that depend on the answer's key and the seed only, not on its batch."""
    import numpy as np  # not at import time: Snakemake's own process imports this module

    return np.random.default_rng(stream_digest(key, seed)).random(count)
