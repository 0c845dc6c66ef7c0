"""Engines: what generates answers, and what each engine can do.

`ENGINES` is the only list of engines. The configuration, the command lines and the rules read it. To add an engine,
write its module, a function here that builds it, and an entry in `ENGINES`.

Snakemake's own process imports this module: torch, transformers and the API client are imported in the functions that
build an engine.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from distill.common.errors import InputError
from distill.common.gpu_claims import claim_gpus
from distill.common.options import read_options
from distill.generation.sampling import Generated, Request, Sampling

if TYPE_CHECKING:
    from distill.models.chat import ChatTemplate


class CompletionScore(NamedTuple):
    """Scores of one completion.

    Attributes:
        nll: negative log-likelihood, summed over the tokens, in nats.
        tokens: number of tokens.
        hits: tokens that are the model's most likely ones.
    """

    nll: float
    tokens: int
    hits: int


class RefusedError(InputError):
    """The engine's server refuses some requests and has answered all others.

    Attributes:
        requests: the refused requests.
    """

    def __init__(self, message: str, requests: Sequence[Request]):
        super().__init__(message)
        self.requests = list(requests)


class Engine(Protocol):
    """Generates answers."""

    @property
    def depends_on_batch(self) -> bool | None:
        """Whether an answer can depend on the other prompts of its batch; None if only the server knows."""

    def fingerprint(self) -> str:
        """Return a digest of everything except the prompt that determines an answer."""

    def describe(self) -> dict[str, Any]:
        """Return what `fingerprint` covers in readable form: names instead of digests."""

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Return the prompts that exceed the model's context: uid to a text with their length and the limit."""

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answered requests in lists, in any order, as they finish; a list may be empty.

        Raises:
            InputError: a request cannot be answered. Without an error, every request is answered.
            RefusedError: a server refuses some requests and has answered all others.
        """

    def peak_memory_mb(self) -> int:
        """Return the peak memory use so far, in MiB; 0 if the model runs elsewhere."""

    def peak_reserved_mb(self) -> int:
        """Return the peak of the memory taken from GPUs so far, see `reserved_mb`; 0 if the model runs elsewhere."""


class ScoringEngine(Engine, Protocol):
    """An engine that also gives the likelihoods of given completions."""

    @property
    def chat(self) -> "ChatTemplate":
        """The model's chat template."""

    @property
    def score_batch_size(self) -> int:
        """Completions per batch in `score_completions`."""

    def score_completions(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[CompletionScore]:
        """Score completions given their prompts, both as token ids; scores are in the order of the completions."""


@dataclass(frozen=True)
class EngineType:
    """What an engine can do and how it is built.

    Attributes:
        description: one sentence for the configuration reference.
        build: builds the engine from a parsed command line.
        loads_weights: the job loads local weights. Model folders are inputs of the job; adapter, dtype and quantization
            apply; the context length is known; copying layers and computing the teacher signal are possible.
        gives_likelihoods: the engine is a `ScoringEngine`, as perplexity and fdistill need.
        needs_gpu: the model runs in the job, which gets the configured GPUs and threads.
        needs_base_url: a running server answers. `base_url` is required, and the connection options apply.
        has_adapter_per_request: one running engine serves several LoRA adapters.
    """

    description: str
    build: Callable[[argparse.Namespace], Engine]
    loads_weights: bool
    gives_likelihoods: bool
    needs_gpu: bool
    needs_base_url: bool = False
    has_adapter_per_request: bool = False


def build_transformers(args: argparse.Namespace) -> Engine:
    """Build the engine `transformers`."""
    from distill.generation.transformers_engine import ModelSource, TransformersEngine

    source = ModelSource(
        args.model,
        args.adapter,
        args.dtype,
        args.quantization,
        args.device,
        args.template_arguments,
        args.template_date,
    )
    return TransformersEngine(source, read_options(args, Sampling), args.batch_size)


def build_openai(args: argparse.Namespace) -> Engine:
    """Build the engine `openai`. The server determines dtype and device."""
    from distill.generation.chat_client import ChatClient
    from distill.generation.openai_engine import OpenAIEngine

    client = ChatClient(
        args.model,
        read_options(args, Sampling),
        args.base_url,
        args.api_key_env,
        args.timeout,
        args.request_retries,
        args.template_arguments,
    )
    return OpenAIEngine(client, args.concurrency)


ENGINES: dict[str, EngineType] = {
    "transformers": EngineType(
        description="Loads the model in the job itself with Hugging Face transformers.",
        build=build_transformers,
        loads_weights=True,
        gives_likelihoods=True,
        needs_gpu=True,
    ),
    "openai": EngineType(
        description="Sends requests to a running server with the OpenAI API: vLLM, SGLang, llama.cpp and others.",
        build=build_openai,
        loads_weights=False,
        gives_likelihoods=False,
        needs_gpu=False,
        needs_base_url=True,
    ),
}


def build_engine(args: argparse.Namespace) -> Engine:
    """Build the engine `args.engine` from the model, engine and sampling options of a parsed command line.

    Raises:
        InputError: a required option is missing, or an option does not apply to this engine.
    """
    kind = ENGINES[args.engine]
    if kind.needs_base_url and not args.base_url:
        raise InputError(f"--base-url: expected the server's address with --engine {args.engine}, found none")
    if not kind.loads_weights and (args.adapter or args.quantization != "none"):
        reason = f"expected neither with --engine {args.engine}: the server loads the model"
        raise InputError(f"--adapter, --quantization: {reason}")
    if kind.needs_gpu:
        claim_gpus(args.device)
    return kind.build(args)
