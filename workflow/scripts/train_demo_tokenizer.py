r"""Train the tokenizer of the demo's models on raw records.

python workflow/scripts/train_demo_tokenizer.py --sft artifacts/sft/*.jsonl --grpo artifacts/grpo/*.jsonl \
    --out models/tokenizer
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", type=Path, nargs="*", default=[], metavar="FILE", help="SFT records (JSONL)")
    parser.add_argument("--grpo", type=Path, nargs="*", default=[], metavar="FILE", help="GRPO records (JSONL)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tokenizer to")
    parser.add_argument("--size", type=int, default=1024, help="tokens in the vocabulary, with special tokens")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and write the tokenizer."""
    args = parse_args(argv)
    from distill.demo.tokenizer import write_tokenizer  # takes seconds to import; parse arguments first

    write_tokenizer([*args.sft, *args.grpo], args.out, args.size)


if __name__ == "__main__":
    run_script(main)
