r"""Render the HTML page that shows how the students' answers to validation prompts change while they train.

    python workflow/scripts/render_samples.py --samples output/*/*/samples.jsonl \
        --splits artifacts/distill_data/processed/*/val.jsonl --out output/report/samples.html
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.report.answers_page import write_page
from distill.report.samples_page import read_references, read_samples, render_samples

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", nargs="+", required=True, metavar="FILE", help=".../STUDENT/CATEGORY/samples.jsonl"
    )
    parser.add_argument("--splits", nargs="+", required=True, metavar="FILE", help="validation splits, .../val.jsonl")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, .html")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the samples, render the page and write it."""
    args = parse_args(argv)
    samples = [read_samples(path) for path in args.samples]
    write_page(args.out, render_samples(samples, read_references(args.splits)))
    logger.info("%d samples of %d trainings -> %s", sum(len(one.lines) for one in samples), len(samples), args.out)


if __name__ == "__main__":
    run_script(main)
