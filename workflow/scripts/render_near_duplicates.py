r"""Render the HTML page that shows near-duplicate prompts, from the files that find_near_duplicates.py writes.

    python workflow/scripts/render_near_duplicates.py --counts output/report/near_duplicates/*.json \
        --pairs output/report/near_duplicates/*.csv --out output/report/near_duplicates.html
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.report.answers_page import write_page
from distill.report.near_duplicates_page import read_counts, read_pairs, render_near_duplicates

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", required=True, metavar="FILE", help=".../CATEGORY.json")
    parser.add_argument("--pairs", nargs="+", required=True, metavar="FILE", help=".../CATEGORY.csv")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, .html")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the pairs, render the page and write it."""
    args = parse_args(argv)
    counts = [read_counts(path) for path in args.counts]
    pairs = {Path(path).stem: read_pairs(path) for path in args.pairs}
    write_page(args.out, render_near_duplicates(counts, pairs))
    logger.info("%d pairs of %d categories -> %s", sum(map(len, pairs.values())), len(counts), args.out)


if __name__ == "__main__":
    run_script(main)
