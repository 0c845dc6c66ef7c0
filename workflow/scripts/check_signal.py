"""Compare a cached teacher signal with the live teacher on a sample of its records.

    python check_signal.py --signal teacher_signal/banks/topk_64_t2 --data processed/banks \
        --model Qwen/Qwen2.5-7B-Instruct

Prints for each record the divergence of the kept distribution from the live one and the largest difference of a
log-probability, among tokens that either side finds likely; exit code 1 where a divergence is above --tolerance.
"""

import argparse
import sys
from pathlib import Path

from distill.common.arguments import count
from distill.common.errors import run_script
from distill.common.options import add_options
from distill.models.options import DeviceOptions, ModelOptions
from distill.records.splits import read_split


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", type=Path, required=True, help="folder of index.json")
    parser.add_argument("--data", type=Path, required=True, help="folder with the splits")
    add_options(parser, ModelOptions)
    add_options(parser, DeviceOptions)
    parser.add_argument("--records", type=count, default=16, help="how many are compared")
    parser.add_argument("--max-length", type=count, default=1_000_000, help="longer records are left out (tokens)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tolerance", type=float, default=0.05, help="of the divergence, nats a token; numbers round")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compare and print."""
    args = parse_args(argv)
    records = [record for name in ("train", "val") for record in read_split(args.data, name)]
    from distill.teacher.compute_signal import compare_signal  # torch: not before bad input ends it

    found = compare_signal(vars(args), records)
    print(f"{'uid':<34}{'tokens':>8}{'divergence':>14}{'largest difference':>20}")
    for uid, tokens, divergence, difference in found:
        print(f"{uid:<34}{tokens:>8}{divergence:>14.3g}{difference:>20.3g}")
    worst, largest = (max(column) for column in list(zip(*found, strict=True))[2:])
    print(
        f"{len(found)} records: largest divergence {worst:.3g} nats a token (tolerance {args.tolerance:g}), largest "
        f"difference of a log-probability {largest:.3g}"
    )
    if not all(divergence <= args.tolerance for _, _, divergence, _ in found):
        print(f"error: {args.signal}: the signal is not this teacher's", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
