"""Merge the answers of a category's shards, in the order of its prompts.

python workflow/scripts/gather_answers.py --prompts artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl \
    --shards banks.1-of-2.jsonl banks.2-of-2.jsonl --shard-stats banks.1-of-2.stats.json banks.2-of-2.stats.json \
    --out artifacts/distill_data/raw/teacher_outputs_banks.jsonl \
    --stats artifacts/distill_data/raw/teacher_outputs_banks.stats.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.teacher.gather_answers import gather_answers


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True, type=Path, help="all prompts of the category (JSONL)")
    for name, text in (
        ("--shards", "answers of all shards, from the first to the last (JSONL)"),
        ("--shard-stats", "counts of all shards, in the same order"),
    ):
        parser.add_argument(name, required=True, type=Path, nargs="+", metavar="FILE", help=text)
    parser.add_argument("--out", required=True, type=Path, help="answers of the category")
    parser.add_argument("--stats", required=True, type=Path, help="counts of the category")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Merge the answers of one category."""
    args = parse_args(argv)
    gather_answers(args.prompts, args.shards, args.shard_stats, args.out, args.stats)


if __name__ == "__main__":
    run_script(main)
