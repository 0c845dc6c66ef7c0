"""A model in this process as an engine: it is loaded when the first answer is asked for."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from distill.chat import encode_prompt
from distill.generation import context_length, generate_requests
from distill.model_source import ModelSource
from distill.models import load_tokenizer, memory_mb
from distill.sampling import Generated, Request, Sampling


class LocalEngine:
    """Answers by transformers.

    Args:
        batch_size: answers at a time; None grows to the memory there is.
    """

    def __init__(self, source: ModelSource, sampling: Sampling, batch_size: int | None):
        self.source, self.sampling, self.batch_size = source, sampling, batch_size
        self.tokenizer = load_tokenizer(source.model)

    @cached_property
    def model(self) -> Any:
        """The model on its device."""
        return self.source.load()

    def fingerprint(self) -> str:
        """Digest of weights, adapter, template, numbers and sampling."""
        return self.source.fingerprint(self.tokenizer, self.sampling)

    def describe(self) -> dict[str, Any]:
        """Model, adapter, numbers and sampling by name."""
        return {"engine": "transformers", **self.source.describe(), "sampling": self.sampling.digest_parts()}

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Prompts that leave no room for a token of answer."""
        limit = context_length(self.source.config())
        lengths = {r.uid: len(encode_prompt(self.tokenizer, r.system, r.prompt)) for r in requests}
        return {uid: f"{n} tokens, the limit is {limit - 1}" for uid, n in lengths.items() if limit and n >= limit}

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Answers as they end."""
        return generate_requests(self.model, self.tokenizer, requests, self.sampling, self.batch_size)

    def peak_memory_mb(self) -> int:
        """Of the GPU, or of this process on the CPU."""
        return memory_mb(self.model.device)
