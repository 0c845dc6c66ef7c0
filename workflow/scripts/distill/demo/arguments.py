"""Command-line options that the demo's training scripts share."""

import argparse
from pathlib import Path

from distill.common.options import add_options
from distill.demo.options import TokenizerOptions
from distill.records.options import SplitOptions


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of training data, sequence length, seed and held-out records."""
    parser.add_argument("--sft", type=Path, nargs="+", required=True, metavar="FILE", help="SFT records (JSONL)")
    parser.add_argument("--max-batch-tokens", type=int, default=4096, help="maximum number of tokens per step")
    parser.add_argument("--max-length", type=int, default=2048, help="longer records are left out (tokens)")
    add_options(parser, TokenizerOptions, only=["seed"])
    add_options(parser, SplitOptions, only=["val_fraction", "test_fraction"])
    add_options(parser, SplitOptions, "split_", only=["seed"])
