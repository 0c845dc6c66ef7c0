"""Compute the teacher's signal on a category's answers once, so that students train without a teacher in memory.

    python compute_signal.py --data processed/banks --kind topk --top-k 64 --temperatures 2.0 \
        --model Qwen/Qwen2.5-7B-Instruct --out teacher_signal/banks/topk_64_t2

Signals that are there already are not computed again, whatever ended the run that made them.
"""

import argparse
from pathlib import Path

from distill.common.arguments import count
from distill.common.errors import run_script
from distill.common.options import add_options
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions
from distill.records.splits import read_split


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the splits; train and val are read")
    parser.add_argument("--kind", choices=["hidden", "topk"], required=True)
    parser.add_argument("--top-k", type=count, help="log-probabilities a position, of topk")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[], help="that students use, of topk")
    add_options(parser, ModelOptions)
    add_options(parser, DeviceOptions)
    add_options(parser, BatchOptions)
    parser.add_argument("--max-length", type=count, default=1_000_000, help="longer records are left out (tokens)")
    parser.add_argument("--out", type=Path, required=True, help="folder of index.json, stats.json and the data")
    args = parser.parse_args(argv)
    if args.kind == "topk" and not (args.top_k and args.temperatures):
        parser.error("--kind topk needs --top-k and --temperatures")
    args.temperatures = sorted(set(args.temperatures)) if args.kind == "topk" else []
    return args


def main(argv: list[str] | None = None) -> None:
    """Compute and write."""
    args = parse_args(argv)
    train, val = read_split(args.data, "train"), read_split(args.data, "val")
    from distill.teacher.compute_signal import compute_signal  # torch: not before bad input ends it

    compute_signal(vars(args), train, val)


if __name__ == "__main__":
    run_script(main)
