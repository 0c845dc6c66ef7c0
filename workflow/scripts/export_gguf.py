"""Write a trained student as a GGUF file of 8 bits a weight (Q8_0), for llama.cpp, Ollama and LM Studio.

    python workflow/scripts/export_gguf.py --student output/student_kd/banks --out output/export/student_kd/banks/gguf

A fresh process loads the file by transformers, compares it with the student and answers a prompt before the folder
takes its name.
"""

import argparse

from distill.common.errors import run_script
from distill.export.options import add_export_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write and check."""
    args = parse_args(argv)
    from distill.export.export_model import export_student  # torch: not before bad arguments end it

    export_student(args.student, "gguf", args.dtype, args.device, args.out)


if __name__ == "__main__":
    run_script(main)
