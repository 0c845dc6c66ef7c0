"""Command-line options that the demo's scripts share."""

import argparse
from pathlib import Path

from distill.common.hashing import parse_fraction


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
