"""Command-line arguments that several scripts share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distill.shares import parse_fraction

if TYPE_CHECKING:
    from distill.generation import Sampling


def batch_size(text: str) -> int | None:
    """`auto` is None: a size by device.

    Raises:
        argparse.ArgumentTypeError: neither `auto` nor a whole number from 1.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected auto or a whole number from 1, found {text!r}")
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --adapter, --dtype, --quantization, --device."""
    parser.add_argument("--model", required=True, help="hub id or local folder")
    parser.add_argument("--adapter", help="LoRA checkpoint")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--quantization", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """--max-new-tokens, --temperature, --top-p, --top-k, --seed."""
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off")
    parser.add_argument("--seed", type=int, default=42)


def read_sampling(args: argparse.Namespace) -> "Sampling":
    """The sampling settings of a parsed command line."""
    from distill.generation import Sampling

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
