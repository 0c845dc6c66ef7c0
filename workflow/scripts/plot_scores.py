"""Draw the scores of all models and categories with their 95 % intervals.

python workflow/scripts/plot_scores.py --scores output/report/metrics.csv --out output/report/scores.svg
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.evaluation.score_table import read_scores
from distill.report.figures import draw_scores

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", required=True, metavar="FILE", help="metrics.csv")
    parser.add_argument("--out", required=True, metavar="FILE", help="the figure, .svg or .png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the scores and draw them."""
    args = parse_args(argv)
    scores = read_scores(args.scores)
    draw_scores(scores, args.out)
    logger.info("drew %d scores -> %s", len(scores), args.out)


if __name__ == "__main__":
    run_script(main)
