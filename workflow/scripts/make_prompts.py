"""Convert mixed records to prompts for the teacher, with their labels.

python workflow/scripts/make_prompts.py --mix artifacts/distill_data/raw/train_mix_banks.jsonl \
    --label-fields holding_log_delta label_log_delta label_delta --answer-key holding_log_delta \
    --out artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options, read_options
from distill.records.options import AnswerFormat, PromptOptions
from distill.records.prompts import make_prompts


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", required=True, type=Path, help="mixed records (JSONL)")
    add_options(parser, AnswerFormat, only=["label_fields"], defaults={"label_fields": []})
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": None})
    add_options(parser, PromptOptions)
    parser.add_argument("--out", required=True, type=Path, help="output: prompts (JSONL)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the prompts of one category."""
    args = parse_args(argv)
    make_prompts(args.mix, args.label_fields, args.answer_key or None, args.out, read_options(args, PromptOptions))


if __name__ == "__main__":
    run_script(main)
