"""Options of the engine that generates answers."""

from dataclasses import dataclass

from distill.common.options import COUNT, option
from distill.generation.engine import ENGINES


@dataclass(frozen=True)
class EngineOptions:
    """What generates the answers, and how a server is reached."""

    engine: str = option(
        "Engine that generates the answers.",
        "transformers",
        choices=ENGINES,
        when="`openai` if vLLM, SGLang, llama.cpp or `transformers serve` already serves the model.",
    )
    base_url: str | None = option(
        "Address of the server for engine `openai`, up to and including `/v1`.",
        None,
        minLength=1,
        changes_result=False,
        when="Required with `openai`, for example `http://localhost:8000/v1`.",
    )
    api_key_env: str = option(
        "Environment variable that holds the server's API key. The key itself is never written anywhere.",
        "OPENAI_API_KEY",
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        is_secret=True,  # it may be the key itself, by mistake
        changes_result=False,
        when="Your key is in another variable. A server without keys needs none.",
    )
    concurrency: int = option(
        "Number of requests that each job keeps open at the server.",
        16,
        **COUNT,
        changes_result=False,
        when="Higher for a server with large batches.",
    )
    timeout: float = option(
        "Maximum time to wait for one answer from the server, in seconds.",
        600,
        exclusiveMinimum=0,
        changes_result=False,
        when="Longer for long answers from a slow server.",
    )
    request_retries: int = option(
        "Number of retries after 408, 409, 429, 5xx, a time-out or a lost connection, and after a response with status "
        "200 that has such an error in its body or has no text.",
        8,
        minimum=0,
        changes_result=False,
        when="Higher if the server may be away for more than half a minute.",
    )
