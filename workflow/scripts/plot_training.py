r"""Draw the training curves of all students and categories.

    python workflow/scripts/plot_training.py \
        --logs output/*/*/training_log.jsonl --out output/report/training.svg
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.report.figures import draw_training, read_training_log

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--logs", nargs="+", required=True, metavar="FILE", help=".../STUDENT/CATEGORY/training_log.jsonl"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the figure, .svg or .png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the logs and draw them."""
    args = parse_args(argv)
    logs = [read_training_log(path) for path in args.logs]
    draw_training(logs, args.out)
    logger.info("drew %d lines from %d logs -> %s", sum(len(log.lines) for log in logs), len(logs), args.out)


if __name__ == "__main__":
    run_script(main)
