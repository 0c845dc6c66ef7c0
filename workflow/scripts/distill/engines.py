"""The engine that a command line asks for; what it needs (torch, or the client of a server) is imported only then."""

import argparse

from distill.arguments import read_sampling
from distill.errors import InputError
from distill.ledger import Engine


def build_engine(args: argparse.Namespace) -> Engine:
    """A LocalEngine or a ServerEngine, from the arguments of `add_model_arguments`, of the sampling and the engine.

    Raises:
        InputError: an option that the engine needs is missing, or one is given that a server has to be started with.
    """
    if args.engine == "openai":
        return build_server_engine(args)
    from distill.local_engine import LocalEngine
    from distill.model_source import ModelSource

    source = ModelSource(args.model, args.adapter, args.dtype, args.quantization, args.device)
    return LocalEngine(source, read_sampling(args), args.batch_size)


def build_server_engine(args: argparse.Namespace) -> Engine:
    """The engine `openai`; dtype and device are the server's own and do not count."""
    if not args.base_url:
        raise InputError("--base-url: expected the server's address with --engine openai, found none")
    if args.adapter or args.quantization != "none":
        raise InputError("--adapter, --quantization: expected neither with --engine openai: the server loads the model")
    from distill.server_engine import ServerEngine

    return ServerEngine(
        args.model,
        read_sampling(args),
        args.base_url,
        args.api_key_env,
        args.concurrency,
        args.timeout,
        args.request_retries,
    )
