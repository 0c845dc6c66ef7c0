"""Write synthetic raw records for the demo.

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
    parser.add_argument("--out", type=Path, required=True, help="parent folder of artifacts/grpo and artifacts/sft")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--grpo", type=int, default=300, help="GRPO records per category")
    parser.add_argument("--sft", type=int, default=400, help="SFT records per category")
    parser.add_argument(
        "--categories", nargs="+", default=["banks", "households", "mutual_funds", "pension_funds"], metavar="CATEGORY"
    )
    parser.add_argument(
        "--without-sft", nargs="*", default=["pension_funds"], metavar="CATEGORY", help="categories without an SFT file"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files and log their number."""
    args = parse_args(argv)
    written = write_demo_data(args.out, args.categories, args.without_sft, args.grpo, args.sft, args.seed)
    logger.info(
        "demo data: %d files in %s, %d written, %d up to date",
        len(written), args.out / "artifacts", sum(written.values()), len(written) - sum(written.values()),
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
