r"""Compare pairs of models on the same test records: score differences with a paired bootstrap.

The columns of the table are category,model,other,metric,difference,ci_low,ci_high,p_value,n,seeds,other_seeds,seed_sd;
a difference is model − other. In a pair, the name of a student with several seeds stands for the mean of its replicas.

    python workflow/scripts/compare_models.py --statistics output/evaluation/*/*.statistics.npz \
        --pairs student_kd:student_kd_base student_kd:teacher --metrics ppl bleu rouge \
        --out output/report/comparisons.csv

With --tasks, the scores on benchmark tasks are compared, too, document by document.
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.common.options import read_options
from distill.evaluation.compare import Pair, compare_models, load_models, sort_files
from distill.evaluation.comparison_table import write_comparisons
from distill.evaluation.options import ScoringOptions, add_scoring_options
from distill.evaluation.task_scores import SUFFIX as TASKS
from distill.evaluation.task_scores import compare_tasks, read_task_scores

logger = logging.getLogger(__name__)


def parse_pair(text: str) -> Pair:
    """Parse the names of two models, separated by a colon.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    model, colon, other = text.partition(":")
    if not (model and colon and other) or ":" in other:
        raise argparse.ArgumentTypeError(f"expected MODEL:OTHER, found {text!r}")
    return model, other


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--statistics", nargs="+", required=True, metavar="FILE", help=".../MODEL/CATEGORY.statistics.npz"
    )
    parser.add_argument(
        "--pairs", nargs="+", type=parse_pair, required=True, metavar="MODEL:OTHER", help="models to compare"
    )
    parser.add_argument("--tasks", nargs="+", default=[], metavar="FILE", help=".../MODEL/CATEGORY.tasks.npz")
    add_scoring_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="comparisons.csv")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Load the statistics of all models, compare the models and write the table."""
    args = parse_args(argv)
    options = read_options(args, ScoringOptions)
    files = sort_files(args.statistics)
    rows = compare_models(load_models(files, options, args.answer_key), args.pairs, options)
    for category, by_model in sort_files(args.tasks, TASKS).items():
        scores = {model: read_task_scores(path) for model, path in by_model.items()}
        rows += compare_tasks(scores, category, args.pairs, options)
    write_comparisons(args.out, rows)
    logger.info("%d pairs in %d categories: %d rows -> %s", len(args.pairs), len(files), len(rows), args.out)


if __name__ == "__main__":
    run_script(main)
