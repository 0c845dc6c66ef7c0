r"""Draw predicted against true values, a panel per model and category.

    python workflow/scripts/plot_values.py \
        --predictions output/evaluation/*/*.predictions.jsonl --answer-key holding_log_delta \
        --out output/report/values.svg
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.report.figures import draw_values, read_values

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predictions", nargs="+", required=True, metavar="FILE", help=".../MODEL/CATEGORY.predictions.jsonl"
    )
    parser.add_argument("--answer-key", default="value", help="name of the values, for the axis labels")
    parser.add_argument("--out", required=True, metavar="FILE", help="the figure, .svg or .png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the predictions and draw them."""
    args = parse_args(argv)
    panels = [read_values(path) for path in args.predictions]
    draw_values(panels, args.out, args.answer_key)
    logger.info(
        "drew %d of %d predictions, the others are unusable or have no label -> %s",
        sum(len(panel.true) for panel in panels),
        sum(panel.records for panel in panels),
        args.out,
    )


if __name__ == "__main__":
    run_script(main)
