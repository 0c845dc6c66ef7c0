r"""Compare models in pairs on the same test records: differences of scores by a paired bootstrap.

Writes category,model,other,metric,difference,ci_low,ci_high,p_value,n; differences are model − other.

    python workflow/scripts/compare_models.py --predictions output/evaluation/*/*.predictions.jsonl \
        --pairs student_kd:student_kd_base student_kd:teacher --metrics ppl bleu rouge \
        --out output/report/comparisons.csv
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.evaluation.compare import Pair, Scoring, compare_models, load_models, sort_files
from distill.evaluation.comparison_table import write_comparisons
from distill.evaluation.options import ScoringOptions
from distill.records.options import AnswerFormat

logger = logging.getLogger(__name__)


def parse_pair(text: str) -> Pair:
    """Two models' names with a colon between them.

    Raises:
        argparse.ArgumentTypeError: another text.
    """
    model, colon, other = text.partition(":")
    if not (model and colon and other) or ":" in other:
        raise argparse.ArgumentTypeError(f"expected MODEL:OTHER, found {text!r}")
    return model, other


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predictions", nargs="+", required=True, metavar="FILE", help=".../MODEL/CATEGORY.predictions.jsonl"
    )
    parser.add_argument(
        "--judged", nargs="+", default=[], metavar="FILE", help="files of judge_answers.py, for fdistill"
    )
    parser.add_argument("--pairs", nargs="+", type=parse_pair, required=True, metavar="MODEL:OTHER")
    add_options(parser, ScoringOptions)
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": ""})
    parser.add_argument("--out", required=True, metavar="FILE", help="comparisons.csv")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read all predictions and write one table."""
    args = parse_args(argv)
    scoring = Scoring(args.metrics, args.answer_key, args.tokenize, args.bootstrap, args.seed)
    files = sort_files(args.predictions)
    records = load_models(files, args.judged, args.metrics)
    rows = compare_models(records, args.pairs, scoring)
    write_comparisons(args.out, rows)
    logger.info("%d pairs in %d categories: %d rows -> %s", len(args.pairs), len(files), len(rows), args.out)


if __name__ == "__main__":
    run_script(main)
