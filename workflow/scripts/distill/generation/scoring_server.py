"""Likelihoods and signals from a running server with the OpenAI API that gives `prompt_logprobs`, as vLLM does."""

import argparse
from collections.abc import Sequence

from distill.common.digest import digest_of
from distill.common.options import read_options
from distill.generation.chat_client import ChatClient
from distill.generation.engine import CompletionScore
from distill.generation.openai_engine import OpenAIEngine
from distill.generation.sampling import Request, Sampling
from distill.generation.token_client import TokenClient
from distill.generation.token_engine import TokenEngine
from distill.models.chat import ChatTemplate
from distill.models.load import load_chat


class ServedTokens:
    """A running server, and the tokenizer of the model that it serves.

    Args:
        args: parsed command line with the options of a server, `model`, `tokenizer` and those of the chat template.
        concurrency: number of open requests.

    Raises:
        InputError: the tokenizer cannot be loaded, or the address is none.
    """

    def __init__(self, args: argparse.Namespace, concurrency: int):
        self.concurrency = concurrency
        self.chat: ChatTemplate = load_chat(args.tokenizer, args.template_arguments, args.template_date)
        names = ("base_url", "api_key_env", "timeout", "request_retries")
        settings = {name: getattr(args, name) for name in names}
        sampling = read_options(args, Sampling)
        self.client = TokenClient(self.chat, [self.chat.end_of_turn], args.model, sampling, **settings)

    def connect(self) -> TokenClient:
        """Return the client."""
        return self.client


class ScoringOpenAIEngine(OpenAIEngine):
    """The engine `openai` with a tokenizer: answers come from chat requests, likelihoods are read by token ids.

    Args:
        client, concurrency: see `OpenAIEngine`.
        server: the same server.
    """

    def __init__(self, client: ChatClient, concurrency: int, server: ServedTokens):
        super().__init__(client, concurrency)
        self.tokens = TokenEngine(server)

    @property
    def chat(self) -> ChatTemplate:
        """The served model's chat template."""
        return self.tokens.chat

    def check_requests(self, requests: Sequence[Request], where: str) -> None:
        """Check that no conversation has tools, and that the chat template shows all turns."""
        super().check_requests(requests, where)
        self.tokens.check_requests(requests, where)

    @property
    def score_batch_size(self) -> int:
        """Completions per batch in `score_completions`."""
        return self.tokens.score_batch_size

    def score_fingerprint(self) -> str:
        """Return a digest of what determines an answer, and of chat template and tokenizer, which the job applies."""
        chat = self.chat
        tokenizer = {"template": digest_of(chat.tokenizer.chat_template), "vocabulary": chat.tokenizer.get_vocab()}
        return digest_of({"answers": self.fingerprint(), **chat.digest_parts(), **tokenizer})

    def score_completions(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[CompletionScore]:
        """Score completions given their prompts; see `TokenEngine.score_completions`."""
        return self.tokens.score_completions(prompts, completions)
