"""Write the demo's synthetic holdings records.

python workflow/scripts/make_demo_data.py --out runs/demo
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import run_script
from distill.demo.data import write_demo_data

logger = logging.getLogger("make_demo_data")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets artifacts/grpo and artifacts/sft")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--grpo", type=int, default=300, help="GRPO records a category")
    parser.add_argument("--sft", type=int, default=400, help="SFT records a category")
    parser.add_argument(
        "--categories", nargs="+", default=["banks", "households", "mutual_funds", "pension_funds"], metavar="CATEGORY"
    )
    parser.add_argument(
        "--without-sft", nargs="*", default=["pension_funds"], metavar="CATEGORY", help="categories with no SFT file"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files and log how many there are."""
    args = parse_args(argv)
    written = write_demo_data(args.out, args.categories, args.without_sft, args.grpo, args.sft, args.seed)
    logger.info(
        "demo data: %d files below %s, %d written, %d already right",
        len(written), args.out / "artifacts", sum(written.values()), len(written) - sum(written.values()),
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
