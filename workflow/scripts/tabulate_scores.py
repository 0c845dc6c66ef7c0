r"""Gather metrics files into metrics.csv: model,category,metric,value,ci_low,ci_high,n,seeds,seed_sd.

Model and category come from the path; an undefined score is an empty cell.

    python workflow/scripts/tabulate_scores.py \
        --metrics output/evaluation/*/*.metrics.json --out output/report/metrics.csv
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.evaluation.score_table import gather_scores, write_scores

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--metrics", nargs="+", required=True, metavar="FILE", help=".../MODEL/CATEGORY.metrics.json, in table order"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics.csv")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Gather the scores and write the table."""
    args = parse_args(argv)
    scores = gather_scores(args.metrics)
    rows = write_scores(args.out, scores)
    undefined = sum(score.value is None for score in scores)
    logger.info("wrote %d scores from %d files, %d undefined -> %s", rows, len(args.metrics), undefined, args.out)


if __name__ == "__main__":
    run_script(main)
