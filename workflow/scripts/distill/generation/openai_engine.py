"""A server with the OpenAI API as an engine: the model is there, this process only asks. No torch here.

Sending a request again is left to the client library: after 408, 409, 429, 5xx, a time-out or a lost connection, as
long as the server's Retry-After says (not at all where that is beyond two minutes), else 0.5 s, doubling up to 8 s.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError, Timeout
from openai.types.chat import ChatCompletionMessage

from distill.common.digest import digest_of
from distill.common.errors import InputError, cut, raise_problems
from distill.generation.sampling import Generated, Request, Sampling, stream_digest
from distill.generation.server_address import check_address

logger = logging.getLogger(__name__)


logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line a request

CONNECT_SECONDS = 10.0  # a server that works hard still accepts connections
FEWEST_IN_A_ROW = 3  # failures of a server; one or two may be a record's, whose answer takes too long
PROBE = Request(0, "probe", "You are a helpful assistant.", "Hello.")


class Problem(NamedTuple):
    """Why a request has no answer.

    Attributes:
        is_final: any other request would end the same, such as a refused key.
        is_servers: the server seems to be at fault and not the record.
    """

    text: str
    is_final: bool = False
    is_servers: bool = False


Outcome = tuple[Request, Generated | Problem]


class OpenAIEngine:
    """Answers by an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve` and others.

    Args:
        model: its name at the server.
        base_url: up to and with /v1.
        api_key_env: environment variable with the key; it may be unset where the server asks for none.
        concurrency: requests that are open at a time.
        timeout: longest wait for one answer, in seconds.
        request_retries: how often a request is sent again.

    Raises:
        InputError: `base_url` is no http address, or the key is none.
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
    ):
        check_address(base_url)
        self.model, self.sampling, self.base_url, self.api_key_env = model, sampling, base_url, api_key_env
        self.concurrency, self.timeout, self.request_retries = concurrency, timeout, request_retries
        self.key = read_key(api_key_env)
        self.is_checked = self.lacks_usage = False

    def fingerprint(self) -> str:
        """Digest of the served name, which stands for the weights, and of the sampling.

        The address is not part of it: servers move between machines and ports.
        """
        return digest_of(self.describe())

    def describe(self) -> dict[str, Any]:
        """What `fingerprint` digests."""
        return {"engine": "openai", "model": self.model, "sampling": self.sampling.digest_parts()}

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """None: the server alone knows its context, and refuses what is too long for it."""
        return {}

    def peak_memory_mb(self) -> int:
        """0: the model is not in this process."""
        return 0

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answers as they come, in any order.

        The event loop runs only while this generator is waited for: no thread goes on behind its caller's back. When
        it is closed early, open requests are cancelled.

        Raises:
            InputError: the server is not there, refuses the key or does not serve the model; or, when all others are
                answered, requests that failed for good: names them. Many failures of the server in a row end it early.
        """
        failed: list[tuple[Request, Problem]] = []
        tasks: set[asyncio.Task[Outcome]] = set()
        waiting, unsent, in_a_row = iter(requests), len(requests), 0
        with asyncio.Runner() as runner:
            loop, client = runner.get_loop(), self.connect()
            try:
                runner.run(self.check(client))
                while in_a_row < max(self.concurrency, FEWEST_IN_A_ROW) and unsent + len(tasks):
                    sent = [*islice(waiting, self.concurrency - len(tasks))]
                    unsent -= len(sent)
                    tasks |= {loop.create_task(self.ask(client, request)) for request in sent}
                    outcomes, tasks = runner.run(wait_for_some(tasks))
                    answered = [(request, found) for request, found in outcomes if isinstance(found, Generated)]
                    problems = [(request, found) for request, found in outcomes if isinstance(found, Problem)]
                    if answered:
                        in_a_row = 0
                        yield answered
                    in_a_row += sum(problem.is_servers for _, problem in problems)
                    failed += problems
                    self.raise_final(problems)
            finally:
                runner.run(close(client, tasks))
        self.raise_failed(failed, unsent + len(tasks))

    def connect(self) -> AsyncOpenAI:
        """A client with this engine's settings."""
        timeout = Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout))
        return AsyncOpenAI(
            api_key=self.key or "none", base_url=self.base_url, timeout=timeout, max_retries=self.request_retries
        )

    async def check(self, client: AsyncOpenAI) -> None:
        """Find out whether the server answers under the model's name, once and before thousands of requests.

        Not every server lists what it serves (`transformers serve` lists no local folder), so a name that is not
        listed is tried with a request for one token. Some take any name: then the list counts.

        Raises:
            InputError: it does not; says why, and what it serves.
        """
        if self.is_checked:
            return
        served = await list_served(client)
        if self.model not in served:
            _, found = await self.ask(client, PROBE, self.model, max_tokens=1)
            if isinstance(found, Generated) and served:
                once = client.with_options(max_retries=0)
                _, other = await self.ask(once, PROBE, f"not-{self.model}", max_tokens=1)
                found = Problem("one that takes any name") if isinstance(other, Generated) else found
            if isinstance(found, Problem):
                expected = f"expected a server with the OpenAI API that serves {self.model} (teacher.model)"
                names = f"; it serves {self.show(', '.join(served))}" if served else ""
                raise InputError(f"{self.base_url} (teacher.base_url): {expected}, found {found.text}{names}")
        self.is_checked = True

    async def ask(
        self, client: AsyncOpenAI, request: Request, model: str | None = None, max_tokens: int | None = None
    ) -> Outcome:
        """The answer to one request, or why there is none after the last retry."""
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.prompt}]
        settings: dict[str, Any] = {"model": model or self.model, "messages": messages}
        settings["max_tokens"] = max_tokens or self.sampling.max_new_tokens
        settings["temperature"] = self.sampling.temperature
        if self.sampling.temperature:  # nothing is drawn at 0
            settings["top_p"] = self.sampling.top_p
            settings["seed"] = stream_digest(request.key, self.sampling.seed) % 2**31
            if self.sampling.top_k:  # not of OpenAI's own API, so only where it is asked for
                settings["extra_body"] = {"top_k": self.sampling.top_k}
        try:
            return request, self.read(await client.chat.completions.create(**settings))
        except (OpenAIError, ValueError) as error:  # ValueError: a body that is called JSON and is none
            return request, self.judge(error)

    def read(self, completion: Any) -> Generated | Problem:
        """What a completion holds; the client does not check that the server keeps to the API.

        Reasoning that the server has split off is put back in front. Tokens that `usage` does not count are 0, and
        half a surrogate pair becomes `?`, since no file takes it.
        """
        choices = getattr(completion, "choices", None)
        choice: Any = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if not (isinstance(message, ChatCompletionMessage) and isinstance(message.content, str | None)):
            return Problem(f"expected a chat completion, found {self.show(repr(completion), 60)}", is_servers=True)
        if choice.finish_reason not in ("stop", "length"):
            found = self.show(repr(choice.finish_reason), 60)
            return Problem(f"finish_reason: expected stop or length, found {found}")
        text, more = message.content or "", message.model_extra or {}
        if reasoning := more.get("reasoning_content") or more.get("reasoning"):
            # Cut off while it reasoned, the model has not closed the block.
            is_open = choice.finish_reason == "length" and not text
            text = f"<think>{reasoning}" if is_open else f"<think>{reasoning}</think>{text}"
        text = text.encode("utf-8", "replace").decode()
        tokens, prompt_tokens = (self.count(completion.usage, name) for name in ("completion_tokens", "prompt_tokens"))
        return Generated(text, choice.finish_reason, tokens, prompt_tokens)

    def count(self, usage: Any, name: str) -> int:
        """A count of tokens; 0, and a warning once, where it is no whole number."""
        found = getattr(usage, name, None)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return found
        if not self.lacks_usage:
            self.lacks_usage = True
            logger.warning("%s gives no usage in whole numbers: tokens are counted as 0", self.base_url)
        return 0

    def show(self, text: str, limit: int = 300) -> str:
        """A server's words for a message: without the key, and only then cut, lest half of the key stays."""
        for key in (repr(self.key)[1:-1], self.key) if self.key else ():
            text = text.replace(key, "***")
        return cut(text, limit)

    def judge(self, error: Exception) -> Problem:
        """An exception of the client in words that do not show the key."""
        if isinstance(error, APITimeoutError):
            cause = type(error.__cause__).__name__
            return Problem(f"no answer in time ({cause}; the timeout is {self.timeout:g} s)", is_servers=True)
        if isinstance(error, APIConnectionError):
            cause = f"{type(error.__cause__).__name__}: {self.show(str(error.__cause__))}"
            return Problem(f"no connection ({cause})", is_servers=True)
        if not isinstance(error, APIStatusError):
            return Problem(f"no chat completion ({type(error).__name__}: {self.show(str(error))})", is_servers=True)
        status = error.status_code
        if status in (401, 403):
            state = "holds another" if self.key else "is not set"
            key = f"expected a key that it takes in the environment variable {self.api_key_env}, which {state}"
            return Problem(f"status {status}: the server refuses the key; {key}", is_final=True)
        body = error.body
        words = (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else body
        # 404 is another address or model; what the client has sent again is no record's fault.
        is_servers = status >= 500 or status in (408, 409, 429)
        return Problem(f"status {status}: {self.show(repr(words))}", is_final=status == 404, is_servers=is_servers)

    def raise_final(self, problems: Sequence[tuple[Request, Problem]]) -> None:
        """Raise the first problem that any other request would have too, if there is one."""
        for _, problem in problems:
            if problem.is_final:
                raise InputError(f"{self.base_url}: {problem.text}")

    def raise_failed(self, failed: Sequence[tuple[Request, Problem]], unsent: int) -> None:
        """Raise what failed, record by record, if anything did; `unsent` requests were given up for it."""
        what = f"answers of {self.base_url}"
        if unsent:
            what += f", which fails again and again: {unsent} more requests were given up"
        named = [f"id {r.id} (uid {r.uid}, sample {r.sample}): {problem.text}" for r, problem in failed]
        raise_problems(named, what)


def read_key(name: str) -> str:
    """The key in an environment variable; empty where there is none.

    Raises:
        InputError: it holds what no HTTP header takes; the message does not show it.
    """
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"environment variable {name}: expected a key of printable ASCII characters")
    return key


async def list_served(client: AsyncOpenAI) -> list[str]:
    """Names of the models that a server lists; none where it has no list to give."""
    try:
        page = await client.with_options(max_retries=0).models.list()
        return [str(model.id) for model in page.data]
    except (OpenAIError, ValueError, AttributeError, TypeError):  # whatever it is, a request tells more
        return []


async def wait_for_some(tasks: set[asyncio.Task[Outcome]]) -> tuple[list[Outcome], set[asyncio.Task[Outcome]]]:
    """(what is done, as soon as something is; the tasks that are still open)."""
    done, still_open = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in done], still_open


async def close(client: AsyncOpenAI, tasks: set[asyncio.Task[Outcome]]) -> None:
    """Cancel what is open and close the connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
