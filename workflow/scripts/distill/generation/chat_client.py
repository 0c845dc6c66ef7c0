"""Single requests to a server with the OpenAI API: what is sent, what is tried again, and what comes back.

The client library retries requests after 408, 409, 429, 5xx, a time-out or a lost connection. It waits for the time in
the server's Retry-After header (it does not retry if that is more than two minutes), or else 0.5 s, doubling up to 8 s.
Responses with status 200 whose body is an error, or has no answer, are retried here after the same times.
"""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from httpx2 import InvalidURL  # the client library's own dependency
from openai import (
    AsyncOpenAI,
    BadRequestError,
    DefaultAsyncHttpx2Client,
    OpenAIError,
    Timeout,
    UnprocessableEntityError,
)
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_exponential

from distill.common.errors import InputError
from distill.generation.chat_response import BodyError, read_reply
from distill.generation.sampling import Generated, Request, Sampling, drop_cut_character, stream_digest
from distill.generation.server_address import check_address
from distill.generation.server_errors import ErrorReader, Problem

logger = logging.getLogger(__name__)

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line per request

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds
CONNECT_SECONDS = 10.0  # a busy server still accepts connections
PROBE = Request(0, "probe", "You are a helpful assistant.", "Hello.")

# Errors of servers that know the maximum length by its newer name only.
NEWER_NAME = re.compile(r"max_completion_tokens|not support[^.]*max_tokens|unsupported[^.]*max_tokens", re.IGNORECASE)
SURROGATE = re.compile("[\ud800-\udfff]")

Outcome = tuple[Request, Generated | Problem]
T = TypeVar("T")


class ChatClient:
    """Sends single requests and reads the responses; `open` returns the connections, which belong to an event loop.

    Args:
        model: name of the model on the server.
        sampling: sampling settings.
        base_url: address of the server, up to and including /v1.
        api_key_env: environment variable with the API key; it may be unset if the server needs no key.
        timeout: maximum time to wait for one answer, in seconds.
        request_retries: number of retries of a request.
        template_arguments: further variables of the chat template, which the server renders.

    Raises:
        InputError: `base_url` is not an http address, or the key contains characters that a header cannot.
    """

    is_local = False  # the server is the job's own, on this machine

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 600.0,
        request_retries: int = 8,
        template_arguments: Mapping[str, Any] | None = None,
    ):
        check_address(base_url)
        self.model, self.sampling, self.base_url = model, sampling, base_url
        self.timeout, self.request_retries = timeout, request_retries
        self.template_arguments = dict(template_arguments or {})
        self.key = read_key(api_key_env)
        self.errors = ErrorReader(base_url, self.key, api_key_env, timeout)
        self.limit_name = "max_tokens"
        self.is_checked = self.lacks_usage = False

    def describe(self) -> dict[str, Any]:
        """Return what decides the answers of the server."""
        found: dict[str, Any] = {"model": self.model, "sampling": self.sampling.digest_parts()}
        return found | ({"template_arguments": self.template_arguments} if self.template_arguments else {})

    def open(self) -> AsyncOpenAI:
        """Return the client library's object with these settings.

        Raises:
            InputError: a proxy of the environment has no valid address, or needs a package that is not installed.
        """
        timeout = Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout))
        # None takes the client library's own, which asks the proxies of the environment.
        connections = DefaultAsyncHttpx2Client(trust_env=False) if self.is_local else None
        settings: dict[str, Any] = {"timeout": timeout, "http_client": connections}
        try:
            return AsyncOpenAI(
                api_key=self.key or "none", base_url=self.base_url, max_retries=self.request_retries, **settings
            )
        except (ImportError, ValueError, InvalidURL) as error:
            names = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
            raise InputError(f"expected the address of a proxy in {names} that can be used: {error}") from error

    async def check_server(self, client: AsyncOpenAI) -> None:
        """Check once, before the first request, that the server serves the model under this name.

        Some servers do not list every model (`transformers serve` lists no local folders), so a name that is not listed
        is tried with a request for one token. Some servers accept any name; for them only the list counts.

        Raises:
            InputError: the server does not serve the model; says why, and which models it serves.
        """
        if self.is_checked:
            return
        served = await list_models(client)
        if self.model not in served:
            found = await self.try_name(client, self.model)
            once = client.with_options(max_retries=0)
            if not found and served and not await self.try_name(once, f"not-{self.model}"):
                found = Problem("one that accepts any name")
            if found:
                expected = f"expected a server with the OpenAI API that serves {self.model} (teacher.model)"
                names = f"; it serves {self.errors.redact(', '.join(served))}" if served else ""
                raise InputError(f"{self.base_url} (teacher.base_url): {expected}, found {found.text}{names}")
        self.is_checked = True

    async def try_name(self, client: AsyncOpenAI, model: str) -> Problem | None:
        """Ask a model for one token, which may be the beginning of hidden reasoning; return why it fails, or None."""
        settings = self.build_settings(PROBE) | {"model": model, self.limit_name: 1}
        found = await self.attempt(client, settings)
        return None if isinstance(found, Generated) or found.is_empty else found

    async def check_refusals(self, client: AsyncOpenAI) -> None:
        """Check with a harmless request that the server does not refuse every request.

        Raises:
            InputError: it does; says why once.
        """
        _, found = await self.send(client, PROBE)
        if isinstance(found, Problem) and (found.is_refusal or found.is_fatal):
            raise InputError(f"{self.base_url}: the server refuses every request, also a test request: {found.text}")

    async def send(self, client: AsyncOpenAI, request: Request) -> Outcome:
        """Send one request; return the answer, or why there is none after the last retry."""
        return request, await self.repeat(client, partial(self.attempt, client, self.build_settings(request)))

    async def repeat(self, client: AsyncOpenAI, attempt: Callable[[], Awaitable[T | Problem]]) -> T | Problem:
        """Return the outcome of an attempt that is not a passing problem, or that of the last one."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(client.max_retries + 1),
            wait=wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_result(lambda found: isinstance(found, Problem) and found.is_passing),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        found: T | Problem = await attempts(attempt)
        return found

    def build_prompt(self, request: Request) -> dict[str, Any]:
        """Return the parameter that holds the prompt."""
        return {"messages": request.conversation.messages}

    def build_settings(self, request: Request) -> dict[str, Any]:
        """Return the parameters of a request."""
        settings: dict[str, Any] = {"model": self.model, **self.build_prompt(request)}
        settings[self.limit_name] = self.sampling.max_new_tokens
        settings["temperature"] = self.sampling.temperature
        if self.sampling.temperature:  # greedy decoding needs none of these
            settings["top_p"] = self.sampling.top_p
            settings["seed"] = stream_digest(request.key, self.sampling.seed) % 2**31
        # OpenAI's own API has neither of these, so they are sent only if set.
        extra: dict[str, Any] = (
            {"top_k": self.sampling.top_k} if self.sampling.temperature and self.sampling.top_k else {}
        )
        extra |= {"chat_template_kwargs": self.template_arguments} if self.template_arguments else {}
        if extra:
            settings["extra_body"] = extra
        return settings

    async def attempt(self, client: AsyncOpenAI, settings: Mapping[str, Any]) -> Generated | Problem:
        """Send a request, which the client library repeats after errors of the connection; return its outcome.

        A server that knows only the newer name of the maximum length, `max_completion_tokens`, gets that from then on.
        """
        try:
            return self.parse_completion(await self.post(client, settings))
        except (BadRequestError, UnprocessableEntityError) as error:
            if "max_tokens" not in settings or not NEWER_NAME.search(str(error.body)):
                return self.errors.read_exception(error)
        except (OpenAIError, ValueError, RecursionError) as error:  # the body is declared as JSON but is not
            return self.errors.read_exception(error)
        renamed = {"max_completion_tokens" if name == "max_tokens" else name: value for name, value in settings.items()}
        found = await self.attempt(client, renamed)
        if isinstance(found, Generated):
            self.limit_name = "max_completion_tokens"
        return found

    async def post(self, client: AsyncOpenAI, settings: Mapping[str, Any]) -> Any:
        """Send the parameters of a request and return the client library's object."""
        return await client.chat.completions.create(**settings)

    def parse_completion(self, completion: Any) -> Generated | Problem:
        """Return the answer in a completion, or what is wrong with it.

        Token counts that `usage` lacks are 0. Half a surrogate pair, which UTF-8 cannot encode, becomes U+FFFD.
        """
        reply = read_reply(completion)
        if isinstance(reply, BodyError):
            return self.errors.read_body_error(reply.error)
        if isinstance(reply, Problem):
            proxy = self.errors.proxy if reply.is_server_fault else ""
            return reply._replace(text=self.errors.redact(reply.text) + proxy)
        text = SURROGATE.sub("\N{REPLACEMENT CHARACTER}", reply.text)
        names = ("completion_tokens", "prompt_tokens")
        tokens, prompt_tokens = (self.count_tokens(completion.usage, name) for name in names)
        return Generated(drop_cut_character(text, reply.finish_reason), reply.finish_reason, tokens, prompt_tokens)

    def count_tokens(self, usage: Any, name: str) -> int:
        """Return a token count; 0 if it is not a whole number, with a warning the first time."""
        found = getattr(usage, name, None)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return found
        if not self.lacks_usage:
            self.lacks_usage = True
            logger.warning(
                "%s: expected token counts (usage) in whole numbers, found none; tokens are counted as 0", self.base_url
            )
        return 0


def read_key(name: str) -> str:
    """Return the API key in an environment variable; empty if it is not set.

    Raises:
        InputError: the key contains characters that an HTTP header cannot; the message does not show it.
    """
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"environment variable {name}: expected a key of printable ASCII characters")
    return key


async def list_models(client: AsyncOpenAI) -> list[str]:
    """Return the names of the models that a server lists; empty if it has no list."""
    try:
        page = await client.with_options(max_retries=0).models.list()
        return [str(model.id) for model in page.data]
    except (OpenAIError, ValueError, AttributeError, TypeError):  # a request for an answer gives a better error
        return []
