"""The engine `openai`: requests to a running server with the OpenAI API. Imports no torch."""

from collections.abc import Iterator, Sequence
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import raise_problems
from distill.generation.chat_client import ChatClient
from distill.generation.sampling import Generated, Request, name_conversations
from distill.generation.server_requests import ServerRequests


class OpenAIEngine:
    """Generates answers with an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve` and others.

    Args:
        client: sends the requests.
        concurrency: number of open requests.
    """

    def __init__(self, client: ChatClient, concurrency: int = 16):
        self.client, self.concurrency = client, concurrency

    @property
    def depends_on_batch(self) -> None:
        """None: only the server knows how it computes a batch."""
        return None

    def fingerprint(self) -> str:
        """Return a digest of the model's name on the server, which identifies the weights, and of the sampling.

        It does not include the address: servers move between machines and ports.
        """
        return digest_of(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `fingerprint` covers."""
        return {"engine": "openai", **self.client.describe()}

    def check_requests(self, requests: Sequence[Request], where: str) -> None:
        """Check that no conversation has tools: the server applies the template, and takes calls out of the answer."""
        expected = "expected no tools with engine openai, whose server takes tool calls out of the text of an answer"
        asked = name_conversations(requests, where)
        raise_problems([f"{name}: {expected}" for name, one in asked if one.has_tools], "conversations")

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Return nothing: only the server knows its context length, and it rejects prompts that are too long."""
        return {}

    def peak_memory_mb(self) -> int:
        """Return 0: the model is not in this process."""
        return 0

    def peak_reserved_mb(self) -> int:
        """Return 0: the model is not in this process."""
        return 0

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answers as they arrive, in any order; see `ServerRequests.send_all`."""
        return ServerRequests(self.client, self.concurrency).send_all(requests)
