"""Check a category's records of one file or dataset and convert them to mixed records.

python workflow/scripts/read_records.py --category science --format sharegpt --records data/science.parquet \
    --columns conversations=dialogue --system "You answer questions." \
    --out artifacts/distill_data/raw/train_mix_science.jsonl

The file is a JSON array, JSONL, CSV, Parquet or Arrow, or the manifest `download.json` of a dataset from the hub. It
may be larger than memory.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.records.options import AnswerFormat, ColumnOptions
from distill.records.read_records import Reading, read_records
from distill.records.shapes import SHAPES


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", required=True, help="name of the category, used in messages")
    parser.add_argument("--format", required=True, choices=SHAPES, help="source format of the records")
    parser.add_argument("--records", required=True, type=Path, help="raw records, or the manifest of a download")
    parser.add_argument("--system", help="system prompt of records that have none of their own")
    add_options(parser, ColumnOptions)
    add_options(parser, AnswerFormat, only=["label_fields"], defaults={"label_fields": []})
    parser.add_argument("--out", required=True, type=Path, help="output: mixed records (JSONL)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the records of one category."""
    args = parse_args(argv)
    reading = Reading(args.format, args.system, args.columns, args.label_fields)
    read_records(args.category, args.records, args.out, reading)


if __name__ == "__main__":
    os.environ["USE_TORCH"] = "0"  # the library `datasets` would import it, which takes longer than most data steps
    run_script(main)
