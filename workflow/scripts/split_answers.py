"""Split the teacher's usable answers into train, val and test by a hash of their prompts.

python workflow/scripts/split_answers.py --answers artifacts/distill_data/raw/teacher_outputs_banks.jsonl \
    --val-fraction 0.1 --test-fraction 0.1 --seed 42 --out artifacts/distill_data/processed/banks
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from distill.common.errors import run_script
from distill.common.hashing import parse_fraction
from distill.common.options import add_options
from distill.records.options import SplitOptions
from distill.records.splits import split_answers


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", required=True, type=Path, help="answers of the teacher (JSONL)")
    add_options(parser, SplitOptions, required=True)
    share = "share of the train and val prompts whose target is the original answer, 0 to 1"
    parser.add_argument("--original-fraction", type=parse_fraction, default=Fraction(0), help=share)
    parser.add_argument("--out", required=True, type=Path, help="output folder: {train,val,test}.{jsonl,source,target}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Split the answers of one category."""
    args = parse_args(argv)
    split_answers(args.answers, args.val_fraction, args.test_fraction, args.seed, args.out, args.original_fraction)


if __name__ == "__main__":
    run_script(main)
