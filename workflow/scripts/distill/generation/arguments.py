"""Command-line options for generation: engine and sampling."""

import argparse

from distill.common.arguments import batch_size, count, retries, seconds
from distill.generation.engine import ENGINES


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --max-new-tokens, --temperature, --top-p, --top-k and --seed."""
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off")
    parser.add_argument("--seed", type=int, default=42)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --batch-size and the options for connecting to a server."""
    parser.add_argument("--engine", choices=ENGINES, default="transformers")
    parser.add_argument("--batch-size", type=batch_size, help="of transformers: auto or a number of records")
    server = parser.add_argument_group("engine openai")
    server.add_argument("--base-url", help="of the server, up to and with /v1")
    server.add_argument("--api-key-env", default="OPENAI_API_KEY", help="environment variable that holds the key")
    server.add_argument("--concurrency", type=count, default=16, help="open requests at a time")
    server.add_argument("--timeout", type=seconds, default=600.0, help="longest wait for one answer, in seconds")
    server.add_argument("--request-retries", type=retries, default=8, help="how often a request is sent again")
