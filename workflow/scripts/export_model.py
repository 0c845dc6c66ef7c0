"""Write a trained student as a folder to deploy: as it is (full), or its weights in int8 or nf4 by bitsandbytes.

    python workflow/scripts/export_model.py --student output/student_kd/banks --variant nf4 \
        --out output/export/student_kd/banks/nf4

A fresh process loads the folder and answers a prompt before the folder takes its name.
"""

import argparse

from distill.common.errors import run_script
from distill.export.options import add_export_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["full", "nf4", "int8"], required=True)
    add_export_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write and check."""
    args = parse_args(argv)
    from distill.export.export_model import export_student  # torch: not before bad arguments end it

    export_student(args.student, args.variant, args.dtype, args.device, args.out)


if __name__ == "__main__":
    run_script(main)
