"""Command-line arguments that several scripts share."""

import argparse
from pathlib import Path

from distill.sampling import Sampling
from distill.shares import parse_fraction


def count(text: str, least: int = 1, also: str = "") -> int:
    """A whole number from `least`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected {also}a whole number from {least}, found {text!r}")
    return int(text)


def batch_size(text: str) -> int | None:
    """`auto` is None: a size by device.

    Raises:
        argparse.ArgumentTypeError: neither `auto` nor a whole number from 1.
    """
    return None if text == "auto" else count(text, also="auto or ")


def retries(text: str) -> int:
    """A whole number from 0."""
    return count(text, least=0)


def seconds(text: str) -> float:
    """A time above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --adapter, --dtype, --quantization, --device."""
    parser.add_argument("--model", required=True, help="hub id or local folder")
    parser.add_argument("--adapter", help="LoRA checkpoint")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--quantization", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """--student, --out, --dtype, --device."""
    parser.add_argument("--student", required=True, help="the trained model's folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to deploy")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """--max-new-tokens, --temperature, --top-p, --top-k, --seed."""
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off")
    parser.add_argument("--seed", type=int, default=42)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """--engine and what only one of them needs: --batch-size of transformers, where the server is of openai."""
    parser.add_argument("--engine", choices=["transformers", "openai"], default="transformers")
    parser.add_argument("--batch-size", type=batch_size, help="of transformers: auto or a number of records")
    server = parser.add_argument_group("engine openai")
    server.add_argument("--base-url", help="of the server, up to and with /v1")
    server.add_argument("--api-key-env", default="OPENAI_API_KEY", help="environment variable that holds the key")
    server.add_argument("--concurrency", type=count, default=16, help="open requests at a time")
    server.add_argument("--timeout", type=seconds, default=600.0, help="longest wait for one answer, in seconds")
    server.add_argument("--request-retries", type=retries, default=8, help="how often a request is sent again")


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """--answer-key."""
    parser.add_argument("--answer-key", help="key of the value in an answer's JSON; without it every text is usable")


def read_sampling(args: argparse.Namespace) -> Sampling:
    """The sampling settings of a parsed command line."""
    return Sampling(args.max_new_tokens, args.temperature, args.top_p, args.top_k, args.seed)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """What the demo's models are trained on, and how: --sft, --batch-size, --max-length, --seed, the splits' own."""
    parser.add_argument("--sft", type=Path, nargs="+", required=True, metavar="FILE", help="SFT records (JSONL)")
    parser.add_argument("--batch-size", type=int, default=8, help="records a step")
    parser.add_argument("--max-batch-tokens", type=int, default=4096, help="tokens a step: longer records, fewer")
    parser.add_argument("--max-length", type=int, default=2048, help="longer records are left out (tokens)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--split-seed", type=int, default=42, help="of the splits: what they hold out is not learnt")
    parser.add_argument("--val-fraction", type=parse_fraction, default="0.1")
    parser.add_argument("--test-fraction", type=parse_fraction, default="0.1")
