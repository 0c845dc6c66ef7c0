"""Initialise a student with evenly spaced layers of its teacher, and its embeddings, head and tokenizer.

    python workflow/scripts/copy_layers.py --model Qwen/Qwen2.5-7B-Instruct --adapter checkpoints/banks --layers 10 \
        --out artifacts/initial_students/10_layers/banks

The teacher is loaded on the CPU without quantization, and its adapter is merged.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.models.options import ModelOptions


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, ModelOptions, only=("model", "adapter", "dtype"))
    parser.add_argument("--layers", type=int, required=True, help="Number of layers, including the first and the last.")
    parser.add_argument("--out", type=Path, required=True, help="Folder to write the student to.")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Copy the layers and write the student."""
    args = parse_args(argv)
    from distill.student.copy_layers import copy_layers  # imports torch: only after bad arguments are rejected

    copy_layers(args.model, args.adapter, args.dtype, args.layers, args.out)


if __name__ == "__main__":
    run_script(main)
