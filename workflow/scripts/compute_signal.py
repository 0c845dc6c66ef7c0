"""Compute the teacher's signal for a category's answers once, so that students train without the teacher in memory.

    python compute_signal.py --data processed/banks --kind topk --top-k 64 --temperatures 2.0 \
        --model Qwen/Qwen2.5-7B-Instruct --out teacher_signal/banks/topk_64_t2

Rerun the command to resume after a stop or a kill: cached signals are not recomputed.
"""

import argparse
from pathlib import Path

from distill.common.arguments import count
from distill.common.errors import run_script
from distill.common.options import add_options
from distill.common.trackers import TrackerOptions, check_installed
from distill.generation.engine import ENGINES, claim_engine_gpus
from distill.generation.options import add_engine_options
from distill.models.example_folders import add_examples_option
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions, TemplateOptions
from distill.records.split_reader import SplitReader
from distill.teacher.options import CACHED_SIGNALS


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the splits train and val")
    parser.add_argument("--kind", choices=CACHED_SIGNALS, required=True, help="what to store of each position")
    parser.add_argument("--top-k", type=count, help="with --kind topk: log-probabilities per token")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[], help="with --kind topk: temperatures that students use"
    )
    parser.add_argument(
        "--tail-samples", type=count, default=0, help="with --kind topk: tokens to sample from all others"
    )
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, DeviceOptions)
    add_options(parser, BatchOptions)
    add_options(parser, TrackerOptions)
    add_engine_options(parser, [name for name, kind in ENGINES.items() if kind.signals])
    parser.add_argument("--max-length", type=count, default=1_000_000, help="skip records longer than this, in tokens")
    parser.add_argument("--out", type=Path, required=True, help="folder for index.json, stats.json and the data")
    add_examples_option(parser)
    parser.add_argument(
        "--store", type=Path, help="folder for the data of this signal, to which `data` in --out then links"
    )
    args = parser.parse_args(argv)
    if args.kind == "topk" and not (args.top_k and args.temperatures):
        parser.error("--kind topk needs --top-k and --temperatures")
    if args.kind != "topk" and args.tail_samples:
        parser.error("--tail-samples needs --kind topk")
    args.temperatures = sorted(set(args.temperatures)) if args.kind == "topk" else []
    return args


def main(argv: list[str] | None = None) -> None:
    """Compute the signal."""
    args = parse_args(argv)
    check_installed(args.report_to)
    train, val = SplitReader(args.data, "train"), SplitReader(args.data, "val")
    claim_engine_gpus(args)
    from distill.teacher.compute_signal import compute_signal  # imports torch, so only after the input is read

    compute_signal(vars(args), train, val)


if __name__ == "__main__":
    run_script(main)
