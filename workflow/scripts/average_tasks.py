r"""Average the scores of a student's replicas on benchmark tasks, with the spread over their training seeds.

    python workflow/scripts/average_tasks.py \
        --statistics output/evaluation/student_kd-seed4{2,3,4}/banks.tasks.npz \
        --out output/evaluation/student_kd/banks.tasks.json
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_json
from distill.common.options import add_options
from distill.evaluation.options import ScoringOptions
from distill.evaluation.task_scores import read_task_scores, score_tasks

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--statistics", type=Path, nargs="+", required=True, metavar="FILE", help=".../REPLICA/CATEGORY.tasks.npz"
    )
    add_options(parser, ScoringOptions, only=["bootstrap", "seed"])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="tasks.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Average the scores and write the metrics file with their means."""
    args = parse_args(argv)
    replicas = {path.absolute().parent.name: read_task_scores(path) for path in args.statistics}
    write_json(args.out, score_tasks(replicas, ScoringOptions(bootstrap=args.bootstrap, seed=args.seed)))
    logger.info("averaged the scores of %s -> %s", ", ".join(replicas), args.out)


if __name__ == "__main__":
    run_script(main)
