r"""Export a trained student as a folder to deploy, in one of the variants below.

    python workflow/scripts/export_model.py --student output/student_kd/banks --variant nf4 \
        --out output/export/student_kd/banks/nf4

Before the folder is published, a fresh process loads it, compares it with the student and generates an answer.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script
from distill.common.gpu_claims import claim_gpus
from distill.common.options import add_options
from distill.common.variants import VARIANTS
from distill.export.options import CompressionOptions, add_export_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    variants = "\n".join(f"  {name}: {variant.description}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"variants:\n{variants}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=tuple(VARIANTS), required=True, help="see below")
    add_export_arguments(parser)
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="FILE", help="train.jsonl, for variants that are calibrated"
    )
    add_options(parser, CompressionOptions)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Export the student."""
    args = parse_args(argv)
    claim_gpus(args.device)
    from distill.export.export_model import Export, export_student  # imports torch; parse arguments first

    calibration = (tuple(args.data), args.calibration_records, args.quantizer)
    export_student(Export(args.student, args.variant, args.dtype, args.device, *calibration), args.out)


if __name__ == "__main__":
    run_script(main)
