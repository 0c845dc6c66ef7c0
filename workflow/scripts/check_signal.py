"""Compare a cached teacher signal with the live teacher on a sample of its records.

    python check_signal.py --signal teacher_signal/banks/topk_64_t2 --data processed/banks \
        --model Qwen/Qwen2.5-7B-Instruct

For each record, prints the divergence of the cached distribution from the live one, and the largest difference of a
log-probability among tokens that are likely in either. Exits with 1 if a divergence exceeds --tolerance.
"""

import argparse
import sys
from pathlib import Path

from distill.common.arguments import count
from distill.common.errors import run_script
from distill.common.options import add_options
from distill.generation.engine import ENGINES
from distill.generation.options import add_engine_options
from distill.models.options import DeviceOptions, ModelOptions, TemplateOptions
from distill.records.split_reader import JoinedRecords, SplitReader


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", type=Path, required=True, help="folder with index.json")
    parser.add_argument("--data", type=Path, required=True, help="folder with the splits")
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, DeviceOptions)
    add_engine_options(parser, [name for name, kind in ENGINES.items() if kind.signals])
    parser.add_argument("--records", type=count, default=16, help="number of records to compare")
    parser.add_argument("--max-length", type=count, default=1_000_000, help="skip records longer than this, in tokens")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="largest divergence that rounding explains, in nats per token"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compare the signals and print a table."""
    args = parse_args(argv)
    records = JoinedRecords(*(SplitReader(args.data, name) for name in ("train", "val")))
    from distill.teacher.compute_signal import compare_signal  # imports torch, so only after the input is read

    found = compare_signal(vars(args), records)
    print(f"{'uid':<34}{'tokens':>8}{'divergence':>14}{'largest difference':>20}")
    for uid, tokens, divergence, difference in found:
        print(f"{uid:<34}{tokens:>8}{divergence:>14.3g}{difference:>20.3g}")
    worst, largest = (max(column) for column in list(zip(*found, strict=True))[2:])
    print(
        f"{len(found)} records: largest divergence {worst:.3g} nats per token (tolerance {args.tolerance:g}), largest "
        f"difference of a log-probability {largest:.3g}"
    )
    if not all(divergence <= args.tolerance for _, _, divergence, _ in found):
        print(f"error: {args.signal}: the signal is from another teacher", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
