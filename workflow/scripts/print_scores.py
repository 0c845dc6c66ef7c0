"""Print the scores of a metrics.csv as a readable table: a block per category, a row per model.

python workflow/scripts/print_scores.py --scores output/report/metrics.csv [--markdown]
"""

import argparse

from distill.common.errors import run_script
from distill.evaluation.score_table import read_scores
from distill.report.score_text import format_markdown, format_text


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", required=True, metavar="FILE", help="metrics.csv")
    parser.add_argument("--markdown", action="store_true", help="print one Markdown table instead of plain text")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the table to standard output."""
    args = parse_args(argv)
    scores = read_scores(args.scores)
    print(format_markdown(scores) if args.markdown else format_text(scores))


if __name__ == "__main__":
    run_script(main)
