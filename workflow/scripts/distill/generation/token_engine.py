"""Answers and likelihoods from a server that takes token ids: the engine `vllm`, and `openai` with a tokenizer."""

from collections.abc import Iterator, Sequence
from math import exp
from typing import Protocol

from distill.common.errors import InputError
from distill.generation.engine import CompletionScore
from distill.generation.sampling import Generated, Request, name_conversations
from distill.generation.server_requests import ServerRequests
from distill.generation.token_client import TokenClient, TokenReply, TokenRequest
from distill.models.chat import ChatTemplate, check_conversations
from distill.models.control_tokens import list_texts

LARGEST_MASS = 1.001  # of the most likely tokens together; rounding may lift the sum a little above 1
SCORED_TOGETHER = 64  # completions that `score_completions` is given at a time


class TokenServer(Protocol):
    """A server that takes token ids."""

    @property
    def chat(self) -> ChatTemplate:
        """The served model's chat template."""

    def connect(self) -> TokenClient:
        """Return the client of the running server, which is started first if need be."""

    @property
    def concurrency(self) -> int:
        """Number of open requests."""


class TokenEngine:
    """Answers requests and reads likelihoods by token ids.

    Args:
        server: the server.
    """

    def __init__(self, server: TokenServer):
        self.server = server
        self.is_checked = False

    @property
    def chat(self) -> ChatTemplate:
        """The served model's chat template."""
        return self.server.chat

    @property
    def score_batch_size(self) -> int:
        """Completions per batch in `score_completions`."""
        return SCORED_TOGETHER

    def check_requests(self, requests: Sequence[Request], where: str) -> None:
        """Check that the chat template renders all conversations; see `Engine.check_requests`."""
        check_conversations(self.chat, name_conversations(requests, where))

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answers as they arrive, in any order; see `ServerRequests.send_all`."""
        self.chat.log_control_tokens(list_texts(request.conversation) for request in requests)
        return ServerRequests(self.server.connect(), self.server.concurrency).send_all(requests)

    def read_tokens(self, requests: Sequence[TokenRequest]) -> list[TokenReply]:
        """Return what the model says about given tokens, in the order of the requests.

        Raises:
            InputError: a request has no reply, the server's probabilities sum to more than one, or its tokens are not
                those of the tokenizer.
        """
        sender = ServerRequests(self.server.connect(), self.server.concurrency)
        found: dict[int, TokenReply] = {}
        for replies in sender.send_all(requests):
            for request, reply in replies:
                self.check_reply(request, reply)
                found[request.id] = reply
        return [found[request.id] for request in requests]

    def check_reply(self, request: TokenRequest, reply: TokenReply) -> None:
        """Check the probabilities of a reply, and once that the server has the same tokenizer.

        Raises:
            InputError: they cannot be those of the model.
        """
        where = f"{self.server.connect().base_url}: prompt_logprobs of uid {request.uid}"
        for position in reply.positions:
            mass = sum(map(exp, position.top.values()))
            if not mass <= LARGEST_MASS:
                raise InputError(f"{where}: expected probabilities that sum to at most 1, found {mass:.4g}")
        if not self.is_checked and reply.positions:
            self.check_texts(where, reply)
            self.is_checked = True

    def check_texts(self, where: str, reply: TokenReply) -> None:
        """Check that the server's texts of ids are the tokenizer's.

        Raises:
            InputError: some differ; names one.
        """
        texts = {index: text for position in reply.positions for index, text in position.texts.items() if text}
        for index, text in texts.items():
            own = self.chat.tokenizer.decode([index])
            if "\N{REPLACEMENT CHARACTER}" not in own + text and own.strip() != text.strip():
                raise InputError(f"{where}: expected token {index} to be {own!r} as in the tokenizer, found {text!r}")

    def score_completions(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[CompletionScore]:
        """Score completions given their prompts; scores are in the order of the completions.

        Raises:
            InputError: see `read_tokens`.
        """
        requests = [
            TokenRequest(row, f"completion {row}", [*prompt, *completion], len(prompt), top=1)
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        return [
            CompletionScore(
                -sum(position.logprob for position in reply.positions),
                len(reply.positions),
                sum(position.rank == 1 for position in reply.positions),
            )
            for reply in self.read_tokens(requests)
        ]
