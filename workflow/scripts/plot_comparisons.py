r"""Draw the differences between models with their 95 % intervals.

    python workflow/scripts/plot_comparisons.py --comparisons output/report/comparisons.csv \
        --out output/report/comparisons.svg
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.evaluation.comparison_table import read_comparisons
from distill.report.comparison_figure import draw_comparisons

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", required=True, metavar="FILE", help="comparisons.csv")
    parser.add_argument("--out", required=True, metavar="FILE", help="the figure, .svg or .png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the differences and draw them."""
    args = parse_args(argv)
    rows = read_comparisons(args.comparisons)
    draw_comparisons(rows, args.out)
    logger.info("drew %d differences -> %s", len(rows), args.out)


if __name__ == "__main__":
    run_script(main)
