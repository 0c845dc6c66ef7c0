"""The engine `openai`: requests to a running server with the OpenAI API. Imports no torch.

The client library retries requests after 408, 409, 429, 5xx, a time-out or a lost connection. It waits for the time in
the server's Retry-After header (it does not retry if that is more than two minutes), or else 0.5 s, doubling up to 8 s.
Responses with status 200 whose body is an error, or has no answer, are retried here after the same times.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError, Timeout
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_exponential

from distill.common.digest import digest_of
from distill.common.errors import InputError, cut, raise_problems
from distill.generation.chat_response import Problem, read_reply
from distill.generation.sampling import Generated, Request, Sampling, drop_cut_character, stream_digest
from distill.generation.server_address import check_address

logger = logging.getLogger(__name__)

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line per request

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds
CONNECT_SECONDS = 10.0  # a busy server still accepts connections
LEAST_IN_A_ROW = 3  # consecutive failures of a server; one or two may be requests whose answer takes too long
PROBE = Request(0, "probe", "You are a helpful assistant.", "Hello.")


Outcome = tuple[Request, Generated | Problem]


class OpenAIEngine:
    """Generates answers with an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve` and others.

    Args:
        model: name of the model on the server.
        sampling: sampling settings.
        base_url: address of the server, up to and including /v1.
        api_key_env: environment variable with the API key; it may be unset if the server needs no key.
        concurrency: number of open requests.
        timeout: maximum time to wait for one answer, in seconds.
        request_retries: number of retries of a request.
        template_arguments: further variables of the chat template, which the server renders.

    Raises:
        InputError: `base_url` is not an http address, or the key contains characters that a header cannot.
    """

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout: float = 600.0,
        request_retries: int = 8,
        template_arguments: Mapping[str, Any] | None = None,
    ):
        check_address(base_url)
        self.model, self.sampling, self.base_url, self.api_key_env = model, sampling, base_url, api_key_env
        self.concurrency, self.timeout, self.request_retries = concurrency, timeout, request_retries
        self.template_arguments = dict(template_arguments or {})
        self.key = read_key(api_key_env)
        self.is_checked = self.lacks_usage = False

    def fingerprint(self) -> str:
        """Return a digest of the model's name on the server, which identifies the weights, and of the sampling.

        It does not include the address: servers move between machines and ports.
        """
        return digest_of(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `fingerprint` covers."""
        found = {"engine": "openai", "model": self.model, "sampling": self.sampling.digest_parts()}
        return found | ({"template_arguments": self.template_arguments} if self.template_arguments else {})

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Return nothing: only the server knows its context length, and it rejects prompts that are too long."""
        return {}

    def peak_memory_mb(self) -> int:
        """Return 0: the model is not in this process."""
        return 0

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answers as they arrive, in any order.

        The event loop runs only while the caller waits for the next answers; there is no background thread. Closing the
        generator early cancels open requests.

        Raises:
            InputError: the server is unreachable, rejects the key or does not serve the model. Requests that failed
                after all retries are reported together after the others are answered, or as soon as the server fails
                many times in a row.
        """
        failed: list[tuple[Request, Problem]] = []
        tasks: set[asyncio.Task[Outcome]] = set()
        waiting, unsent, in_a_row = iter(requests), len(requests), 0
        with asyncio.Runner() as runner:
            loop, client = runner.get_loop(), self.build_client()
            try:
                runner.run(self.check_server(client))
                while in_a_row < max(self.concurrency, LEAST_IN_A_ROW) and unsent + len(tasks):
                    sent = [*islice(waiting, self.concurrency - len(tasks))]
                    unsent -= len(sent)
                    tasks |= {loop.create_task(self.send(client, request)) for request in sent}
                    outcomes, tasks = runner.run(wait_for_any(tasks))
                    answered = [(request, found) for request, found in outcomes if isinstance(found, Generated)]
                    problems = [(request, found) for request, found in outcomes if isinstance(found, Problem)]
                    if answered:
                        in_a_row = 0
                        yield answered
                    in_a_row += sum(problem.is_server_fault for _, problem in problems)
                    failed += problems
                    self.raise_fatal(problems)
            finally:
                runner.run(close(client, tasks))
        self.raise_failed(failed, unsent + len(tasks))

    def build_client(self) -> AsyncOpenAI:
        """Return a client with this engine's settings."""
        timeout = Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout))
        return AsyncOpenAI(
            api_key=self.key or "none", base_url=self.base_url, timeout=timeout, max_retries=self.request_retries
        )

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
            _, found = await self.send(client, PROBE, self.model, max_tokens=1)
            if isinstance(found, Generated) and served:
                once = client.with_options(max_retries=0)
                _, other = await self.send(once, PROBE, f"not-{self.model}", max_tokens=1)
                found = Problem("one that accepts any name") if isinstance(other, Generated) else found
            if isinstance(found, Problem):
                expected = f"expected a server with the OpenAI API that serves {self.model} (teacher.model)"
                names = f"; it serves {self.redact(', '.join(served))}" if served else ""
                raise InputError(f"{self.base_url} (teacher.base_url): {expected}, found {found.text}{names}")
        self.is_checked = True

    async def send(
        self, client: AsyncOpenAI, request: Request, model: str | None = None, max_tokens: int | None = None
    ) -> Outcome:
        """Send one request; return the answer, or why there is none after the last retry.

        Args:
            client: the client.
            request: the request.
            model: name of the model, if it is not this engine's.
            max_tokens: maximum length of the answer, if it is not that of the sampling settings.
        """
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.prompt}]
        settings: dict[str, Any] = {"model": model or self.model, "messages": messages}
        settings["max_tokens"] = max_tokens or self.sampling.max_new_tokens
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
        attempts = AsyncRetrying(
            stop=stop_after_attempt(client.max_retries + 1),
            wait=wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_result(lambda found: isinstance(found, Problem) and found.is_passing),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        return request, await attempts(self.attempt, client, settings)

    async def attempt(self, client: AsyncOpenAI, settings: Mapping[str, Any]) -> Generated | Problem:
        """Send a request, which the client library repeats after errors of the connection; return its outcome."""
        try:
            return self.parse_completion(await client.chat.completions.create(**settings))
        except (OpenAIError, ValueError) as error:  # ValueError: the body is declared as JSON but is not
            return self.describe_error(error)

    def parse_completion(self, completion: Any) -> Generated | Problem:
        """Return the answer in a completion, or what is wrong with it.

        Token counts that `usage` lacks are 0. Half a surrogate pair becomes `?`, because UTF-8 cannot encode it.
        """
        reply = read_reply(completion)
        if isinstance(reply, Problem):
            return reply._replace(text=self.redact(reply.text))
        text = reply.text.encode("utf-8", "replace").decode()
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

    def redact(self, text: str, limit: int = 300) -> str:
        """Return a server's text for a message: the key is removed first, then the text is cut."""
        for key in (repr(self.key)[1:-1], self.key) if self.key else ():
            text = text.replace(key, "***")
        return cut(text, limit)

    def describe_error(self, error: Exception) -> Problem:
        """Return a client exception as a problem, without the key."""
        if isinstance(error, APITimeoutError):
            cause = type(error.__cause__).__name__
            return Problem(f"no answer in time ({cause}; the timeout is {self.timeout:g} s)", is_server_fault=True)
        if isinstance(error, APIConnectionError):
            cause = f"{type(error.__cause__).__name__}: {self.redact(str(error.__cause__))}"
            return Problem(f"no connection ({cause})", is_server_fault=True)
        if not isinstance(error, APIStatusError):
            return Problem(
                f"no chat completion ({type(error).__name__}: {self.redact(str(error))})", is_server_fault=True
            )
        status = error.status_code
        if status in (401, 403):
            state = "has another value" if self.key else "is not set"
            key = f"expected a valid key in the environment variable {self.api_key_env}, which {state}"
            return Problem(f"status {status}: the server rejects the key; {key}", is_fatal=True)
        body = error.body
        words = (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else body
        # 404 means a wrong address or model. What the client library retries is not the request's fault.
        is_server_fault = status >= 500 or status in (408, 409, 429)
        return Problem(
            f"status {status}: {self.redact(repr(words))}", is_fatal=status == 404, is_server_fault=is_server_fault
        )

    def raise_fatal(self, problems: Sequence[tuple[Request, Problem]]) -> None:
        """Raise the first fatal problem, if there is one."""
        for _, problem in problems:
            if problem.is_fatal:
                raise InputError(f"{self.base_url}: {problem.text}")

    def raise_failed(self, failed: Sequence[tuple[Request, Problem]], unsent: int) -> None:
        """Raise one error that lists all failed requests, if there are any; `unsent` requests were abandoned."""
        what = f"answers of {self.base_url}"
        if unsent:
            what += f", which keeps failing: {unsent} more requests were abandoned"
        named = [f"id {r.id} (uid {r.uid}, sample {r.sample}): {problem.text}" for r, problem in failed]
        raise_problems(named, what)


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


async def wait_for_any(tasks: set[asyncio.Task[Outcome]]) -> tuple[list[Outcome], set[asyncio.Task[Outcome]]]:
    """Wait until a task is done; return (outcomes of all done tasks, tasks that are still open)."""
    done, still_open = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in done], still_open


async def close(client: AsyncOpenAI, tasks: set[asyncio.Task[Outcome]]) -> None:
    """Cancel open requests and close the connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
