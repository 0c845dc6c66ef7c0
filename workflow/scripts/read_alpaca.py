"""Check a category's questions in Alpaca format and convert them to mixed records.

python workflow/scripts/read_alpaca.py --category scriptures --questions data/scriptures.json \
    --system "You answer questions about scriptures." --out artifacts/distill_data/raw/train_mix_scriptures.jsonl

The file is a JSON array or JSONL of objects with instruction, input and output. It may be larger than memory.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.records.alpaca import read_alpaca
from distill.records.options import AnswerFormat


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", required=True, help="name of the category, used in messages")
    parser.add_argument(
        "--questions", required=True, type=Path, help="questions in Alpaca format (JSON array or JSONL)"
    )
    parser.add_argument("--system", required=True, help="system prompt of questions that have none of their own")
    add_options(parser, AnswerFormat, only=["label_fields"], defaults={"label_fields": []})
    parser.add_argument("--out", required=True, type=Path, help="output: mixed records (JSONL)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the records of one category."""
    args = parse_args(argv)
    read_alpaca(args.category, args.questions, args.system, args.out, args.label_fields)


if __name__ == "__main__":
    run_script(main)
