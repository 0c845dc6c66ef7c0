"""Requests whose prompt is token ids, for servers that also say how likely tokens are (vLLM's completions API).

The chat template is applied here and not by the server, so that both sides have the same tokens, and answers are
decoded here, so that special tags stay in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from openai import AsyncOpenAI, OpenAIError
from openai.types import CompletionChoice

from distill.generation.chat_client import ChatClient
from distill.generation.chat_response import CUT, STOPPED, find_error
from distill.generation.generate import finish
from distill.generation.sampling import Generated, Request, Sampling
from distill.generation.server_errors import Problem
from distill.generation.server_requests import Outcome
from distill.models.chat import ChatTemplate


@dataclass(frozen=True)
class TokenRequest:
    """A request for what a model says about given tokens.

    Attributes:
        id: number of the record among those that are asked together.
        uid: name of the record.
        tokens: prompt and completion.
        start: index of the completion's first token.
        top: number of most likely tokens to return at each position; 0 asks for the hidden states only.
        sample: 0; errors name it beside the uid.
    """

    id: int
    uid: str
    tokens: Sequence[int]
    start: int
    top: int
    sample: int = 0


class Position(NamedTuple):
    """What a model says about a token, given those before it.

    Attributes:
        logprob: log-probability of the token itself.
        rank: 1 if it is the most likely one.
        top: log-probabilities of the most likely tokens by id, in descending order.
        texts: the server's text of these ids.
    """

    logprob: float
    rank: int
    top: dict[int, float]
    texts: dict[int, str | None]


class TokenReply(NamedTuple):
    """Reply to a TokenRequest.

    Attributes:
        positions: one for each token of the completion; empty if none were requested.
        hidden_states: path of the file with the hidden states; None if the server extracts none.
    """

    positions: list[Position]
    hidden_states: str | None


class TokenClient(ChatClient):
    """Asks for answers and likelihoods by token ids.

    Args:
        chat: the served model's chat template and tokenizer.
        stops: ids that end an answer.
        model, sampling, base_url, settings: see `ChatClient`.
    """

    def __init__(
        self,
        chat: ChatTemplate,
        stops: Sequence[int],
        model: str,
        sampling: Sampling,
        base_url: str,
        **settings: Any,
    ):
        super().__init__(model, sampling, base_url, **settings)
        self.chat, self.stops = chat, list(stops)

    async def send(self, client: AsyncOpenAI, request: Request | TokenRequest) -> Outcome:
        """Send one request; return the answer or the reply, or why there is none after the last retry."""
        if isinstance(request, Request):
            return await super().send(client, request)
        return request, await self.repeat(client, partial(self.ask, client, request))

    async def ask(self, client: AsyncOpenAI, request: TokenRequest) -> TokenReply | Problem:
        """Ask once what the model says about given tokens; the client library repeats it after some errors."""
        try:
            completion = await self.post(client, self.build_token_settings(request))
        except (OpenAIError, ValueError, RecursionError) as error:
            return self.errors.read_exception(error)
        choice = self.read_choice(completion)
        return choice if isinstance(choice, Problem) else read_token_reply(completion, choice, request)

    def build_token_settings(self, request: TokenRequest) -> dict[str, Any]:
        """Return the parameters of a TokenRequest: one token is generated, because none cannot be asked for."""
        extra = {"prompt_logprobs": request.top} if request.top else {}
        fixed = {"max_tokens": 1, "temperature": 1.0}
        extra |= {"add_special_tokens": False}
        return {"model": self.model, "prompt": list(request.tokens), **fixed, "extra_body": extra}

    def build_prompt(self, request: Request) -> dict[str, Any]:
        """Return the parameter that holds the prompt, as token ids."""
        return {"prompt": self.chat.encode_conversation(request.conversation)}

    def build_settings(self, request: Request) -> dict[str, Any]:
        """Return the parameters of a request for an answer."""
        settings = super().build_settings(request)
        extra = settings.pop("extra_body", {})
        extra.pop("chat_template_kwargs", None)  # the template is applied here
        extra |= {"stop_token_ids": self.stops, "return_token_ids": True, "add_special_tokens": False}
        # Without ignore_eos, vLLM would also stop at the tokenizer's EOS token, which may not be among the stops.
        extra |= {"skip_special_tokens": False, "ignore_eos": True}
        return settings | {"extra_body": extra}

    async def post(self, client: AsyncOpenAI, settings: Mapping[str, Any]) -> Any:
        """Send the parameters of a request and return the client library's object."""
        return await client.completions.create(**settings)

    def parse_completion(self, completion: Any) -> Generated | Problem:
        """Return the answer in a completion, or what is wrong with it."""
        choice = self.read_choice(completion)
        if isinstance(choice, Problem):
            return choice
        tokens, reason = (choice.model_extra or {}).get("token_ids"), choice.finish_reason
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            return Problem(f"choices[0].token_ids: expected the ids of the answer's tokens, found {tokens!r}")
        if reason not in (*STOPPED, *CUT):
            return Problem(f"finish_reason: expected stop or length, found {reason!r}", is_server_fault=True)
        found = finish(self.chat, tokens, self.stops, self.count_tokens(completion.usage, "prompt_tokens"))
        # Servers that leave the end of the turn out of the tokens say that there was one.
        is_end_left_out = reason in STOPPED and found.finish_reason == "length"
        if is_end_left_out:
            return Generated(found.text, "stop", found.tokens + 1, found.prompt_tokens)
        return found

    def read_choice(self, completion: Any) -> CompletionChoice | Problem:
        """Return the first choice of a completion, or what is wrong; the client library does not validate it."""
        choices = getattr(completion, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        if error := find_error(completion, choice):
            return self.errors.read_body_error(error)
        if not isinstance(choice, CompletionChoice):
            text = self.errors.redact(f"expected a completion, found {completion!r}")
            return Problem(text, is_server_fault=True, is_passing=True)
        return choice


def read_token_reply(completion: Any, choice: CompletionChoice, request: TokenRequest) -> TokenReply | Problem:
    """Return the reply to a TokenRequest, or what is wrong with it."""
    parameters = (completion.model_extra or {}).get("kv_transfer_params") or {}
    path = parameters.get("hidden_states_path") if isinstance(parameters, dict) else None
    if not request.top:
        return TokenReply([], path)
    found = (choice.model_extra or {}).get("prompt_logprobs")
    if not isinstance(found, list) or len(found) != len(request.tokens):
        expected = f"a list with {len(request.tokens)} positions"
        return Problem(
            f"choices[0].prompt_logprobs: expected {expected}, found {type(found).__name__}; the server must support "
            "prompt_logprobs, as vLLM does"
        )
    try:
        return TokenReply([read_position(found[at], request, at) for at in range(request.start, len(found))], path)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return Problem(f"choices[0].prompt_logprobs: expected log-probabilities by token id, found {error!r}")


def read_position(entry: Mapping[str, Any], request: TokenRequest, at: int) -> Position:
    """Return what the model says about the token at an index.

    Raises:
        ValueError: the token itself, or some of the most likely ones, are missing.
    """
    own = entry[str(request.tokens[at])]
    ranked = sorted((int(one["rank"]), int(index)) for index, one in entry.items())
    top = [index for rank, index in ranked if rank <= request.top][: request.top]
    if len(top) < request.top:
        raise ValueError(f"{len(top)} of the {request.top} most likely tokens at position {at}")
    values = {index: float(entry[str(index)]["logprob"]) for index in top}
    texts = {index: entry[str(index)].get("decoded_token") for index in top}
    return Position(float(own["logprob"]), int(own["rank"]), values, texts)
