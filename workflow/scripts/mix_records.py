"""Check a category's raw GRPO and SFT records and mix them.

python workflow/scripts/mix_records.py --category banks --grpo artifacts/grpo/grpo_banks.jsonl \
    --sft artifacts/sft/sft_train_banks.jsonl --grpo-fraction 0.7 --sft-fraction 0.3 --seed 42 \
    --label-fields holding_log_delta label_log_delta label_delta --answer-key holding_log_delta \
    --out artifacts/distill_data/raw/train_mix_banks.jsonl
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.records.mix import Labels, Source, mix_records
from distill.records.options import AnswerFormat, MixOptions


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", required=True, help="name of the category, used in messages")
    parser.add_argument(
        "--grpo", nargs="?", type=Path, help="raw GRPO records (JSONL); not needed if their fraction is 0"
    )
    parser.add_argument(
        "--sft", nargs="?", type=Path, help="raw SFT records (JSONL); not needed if their fraction is 0"
    )
    add_options(parser, MixOptions, required=True)
    add_options(parser, AnswerFormat, only=["label_fields"], defaults={"label_fields": []})
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": None})
    parser.add_argument("--out", required=True, type=Path, help="output: mixed records (JSONL)")
    args = parser.parse_args(argv)
    for origin in ("grpo", "sft"):
        if getattr(args, f"{origin}_fraction") and not getattr(args, origin):
            parser.error(f"--{origin} is required if --{origin}-fraction is above 0")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Mix the records of one category."""
    args = parse_args(argv)
    sources = [Source("grpo", args.grpo, args.grpo_fraction), Source("sft", args.sft, args.sft_fraction)]
    sources = [source for source in sources if source.fraction]
    mix_records(args.category, sources, args.seed, Labels(args.label_fields, args.answer_key or None), args.out)


if __name__ == "__main__":
    run_script(main)
