"""Engines: what generates answers, and what each engine can do.

`ENGINES` is the only list of engines. The configuration, the command lines and the rules read it. To add an engine,
write its module, a function here that builds it, and an entry in `ENGINES`.

Snakemake's own process imports this module: torch, transformers and the API client are imported in the functions that
build an engine.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from distill.common.errors import InputError
from distill.common.gpu_claims import claim_gpus
from distill.common.options import read_options
from distill.generation.sampling import Generated, Request, Sampling

if TYPE_CHECKING:
    from distill.generation.transformers_engine import ModelSource
    from distill.models.chat import ChatTemplate

PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")  # arguments of vLLM; their product is the GPUs
CONCURRENCY = {"openai": 16, "vllm": 256}  # requests that a job keeps open by default


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

    def check_requests(self, requests: Sequence[Request], where: str) -> None:
        """Check that the model can be asked these conversations.

        Args:
            requests: what to answer.
            where: file of the prompts.

        Raises:
            InputError: it cannot be asked some of them; names each.
        """

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

    def score_fingerprint(self) -> str:
        """Return a digest of everything except prompt and completion that determines a score."""

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
        signals: the cached signals that it computes.
        has_all_logits: the signal `topk` is computed from the logits of all tokens: for any temperature, not for 1
            alone, and with a sampled tail.
        needs_tokenizer: it gives likelihoods and signals only if `tokenizer` names the model's tokenizer.
        starts_vllm: the job starts a vLLM server; `vllm` applies, and `quantization` is an argument of vLLM.
    """

    description: str
    build: Callable[[argparse.Namespace], Engine]
    loads_weights: bool
    gives_likelihoods: bool
    needs_gpu: bool
    needs_base_url: bool = False
    has_adapter_per_request: bool = False
    signals: tuple[str, ...] = ()
    has_all_logits: bool = False
    needs_tokenizer: bool = False
    starts_vllm: bool = False

    @property
    def is_served(self) -> bool:
        """Whether a server computes, and not the job's own process."""
        return self.needs_base_url or self.starts_vllm

    def configure(self, tokenizer: str | None) -> "EngineType":
        """Return what the engine can do with this setting of `tokenizer`."""
        is_complete = tokenizer or not self.needs_tokenizer
        return self if is_complete else replace(self, gives_likelihoods=False, signals=())


def build_transformers(args: argparse.Namespace) -> Engine:
    """Build the engine `transformers`."""
    from distill.generation.transformers_engine import TransformersEngine

    return TransformersEngine(read_source(args), read_options(args, Sampling), args.batch_size)


def read_source(args: argparse.Namespace) -> "ModelSource":
    """Return the model of a parsed command line, and how it is loaded."""
    from distill.generation.transformers_engine import ModelSource

    return ModelSource(
        args.model,
        args.adapter,
        args.dtype,
        args.quantization,
        args.device,
        args.template_arguments,
        args.template_date,
    )


def build_vllm(args: argparse.Namespace) -> Engine:
    """Build the engine `vllm`. The server is started when the first answer is needed."""
    from distill.generation.vllm_engine import VllmEngine, build_server

    return VllmEngine(build_server(args, read_options(args, Sampling)))


def build_openai(args: argparse.Namespace) -> Engine:
    """Build the engine `openai`. The server determines dtype and device."""
    from distill.generation.chat_client import ChatClient
    from distill.generation.openai_engine import OpenAIEngine

    sampling = read_options(args, Sampling)
    names = ("base_url", "api_key_env", "timeout", "request_retries", "template_arguments")
    client = ChatClient(args.model, sampling, **{name: getattr(args, name) for name in names})
    concurrency = args.concurrency or CONCURRENCY["openai"]
    if args.tokenizer is None:
        return OpenAIEngine(client, concurrency)
    from distill.generation.scoring_server import ScoringOpenAIEngine, ServedTokens

    return ScoringOpenAIEngine(client, concurrency, ServedTokens(args, concurrency))


ENGINES: dict[str, EngineType] = {
    "transformers": EngineType(
        description="Loads the model in the job itself with Hugging Face transformers.",
        build=build_transformers,
        loads_weights=True,
        gives_likelihoods=True,
        needs_gpu=True,
        signals=("hidden", "topk"),
        has_all_logits=True,
    ),
    "vllm": EngineType(
        description="Starts a vLLM server in the job, from an environment of its own. The fastest on a GPU.",
        build=build_vllm,
        loads_weights=True,
        gives_likelihoods=True,
        needs_gpu=True,
        has_adapter_per_request=True,
        signals=("hidden", "topk"),
        starts_vllm=True,
    ),
    "openai": EngineType(
        description="Sends requests to a running server with the OpenAI API: vLLM, SGLang, llama.cpp and others.",
        build=build_openai,
        loads_weights=False,
        gives_likelihoods=True,
        needs_gpu=False,
        needs_base_url=True,
        has_adapter_per_request=True,
        signals=("topk",),
        needs_tokenizer=True,
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
    claim_engine_gpus(args)
    return kind.build(args)


def claim_engine_gpus(args: argparse.Namespace) -> None:
    """Claim the GPUs that the engine `args.engine` computes on, before torch is imported; see `claim_gpus`."""
    kind = ENGINES[args.engine]
    if kind.needs_gpu and args.vllm_server is None:
        claim_gpus(args.device, count_gpus(args.vllm_arguments, args.vllm_nodes) if kind.starts_vllm else 1)


def count_gpus(arguments: Mapping[str, Any], nodes: int) -> int:
    """Return the GPUs of one node that a vLLM server takes."""
    return max(prod(int(arguments.get(name, 1)) for name in PARALLEL_SIZES) // nodes, 1)
