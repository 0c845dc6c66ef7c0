"""Export a trained student as a GGUF file with 8 bits per weight (Q8_0), for llama.cpp, Ollama and LM Studio.

    python workflow/scripts/export_gguf.py --student output/student_kd/banks --out output/export/student_kd/banks/gguf

Before the folder is published, a fresh process loads the file with transformers, compares it with the student and
generates an answer. The same as `export_model.py --variant gguf`.
"""

import argparse

from distill.common.errors import run_script
from distill.export.options import add_export_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Export the student."""
    args = parse_args(argv)
    from distill.export.export_model import Export, export_student  # imports torch; parse arguments first

    export_student(Export(args.student, "gguf", args.dtype, args.device), args.out)


if __name__ == "__main__":
    run_script(main)
