"""Command-line arguments that several scripts share."""

import argparse
from pathlib import Path


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


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """--answer-key."""
    parser.add_argument("--answer-key", help="key of the value in an answer's JSON; without it every text is usable")
