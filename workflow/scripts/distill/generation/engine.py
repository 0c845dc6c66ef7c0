"""The engine that a command line asks for; what it needs (torch, or the client of a server) is imported only then."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from distill.common.errors import InputError
from distill.common.options import read_options
from distill.generation.sampling import Generated, Request, Sampling


class Engine(Protocol):
    """What answers requests."""

    def fingerprint(self) -> str:
        """Digest of everything but the prompt that decides an answer."""

    def describe(self) -> dict[str, Any]:
        """The same in words: names instead of digests."""

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Prompts that the context has no room for: by uid, their length and the limit in words."""

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answered requests as they are ready, in any order, or none; may stop only by an exception."""

    def peak_memory_mb(self) -> int:
        """The most memory held so far, in MiB."""


def build_engine(args: argparse.Namespace) -> Engine:
    """A LocalEngine or a ServerEngine, from the arguments of `add_model_arguments`, of the sampling and the engine.

    Raises:
        InputError: an option that the engine needs is missing, or one is given that a server has to be started with.
    """
    if args.engine == "openai":
        return build_server_engine(args)
    from distill.generation.transformers_engine import LocalEngine, ModelSource

    source = ModelSource(args.model, args.adapter, args.dtype, args.quantization, args.device)
    return LocalEngine(source, read_options(args, Sampling), args.batch_size)


def build_server_engine(args: argparse.Namespace) -> Engine:
    """The engine `openai`; dtype and device are the server's own and do not count."""
    if not args.base_url:
        raise InputError("--base-url: expected the server's address with --engine openai, found none")
    if args.adapter or args.quantization != "none":
        raise InputError("--adapter, --quantization: expected neither with --engine openai: the server loads the model")
    from distill.generation.openai_engine import ServerEngine

    return ServerEngine(
        args.model,
        read_options(args, Sampling),
        args.base_url,
        args.api_key_env,
        args.concurrency,
        args.timeout,
        args.request_retries,
    )
