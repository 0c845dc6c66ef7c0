"""Find near-duplicates of a category's training prompts: held-out prompts, and training prompts that precede them.

python workflow/scripts/find_near_duplicates.py --category banks \
    --prompts artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl \
    --val-fraction 0.1 --test-fraction 0.1 --seed 42 --threshold 0.8 \
    --pairs output/report/near_duplicates/banks.csv --counts output/report/near_duplicates/banks.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options, read_options
from distill.records.near_duplicate_options import NearDuplicateOptions
from distill.records.near_duplicates import find_near_duplicates
from distill.records.options import SplitOptions


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", required=True, help="name of the category")
    parser.add_argument("--prompts", required=True, type=Path, help="its prompts (JSONL)")
    others = "prompts of other categories, of which the held-out ones are compared, too"
    parser.add_argument("--others", nargs="+", default=[], type=Path, metavar="FILE", help=others)
    add_options(parser, SplitOptions, required=True)
    add_options(parser, NearDuplicateOptions)
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help="output: the pairs (CSV)")
    parser.add_argument("--counts", required=True, type=Path, metavar="FILE", help="output: counts and uids (JSON)")
    kept = "output: the prompts, with --action drop without near-duplicates (JSONL)"
    parser.add_argument("--kept", type=Path, metavar="FILE", help=kept)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Search the prompts of one category."""
    args = parse_args(argv)
    split, options = read_options(args, SplitOptions), read_options(args, NearDuplicateOptions)
    outputs = (args.pairs, args.counts, args.kept)
    find_near_duplicates(args.category, args.prompts, args.others, split, options, *outputs)


if __name__ == "__main__":
    run_script(main)
