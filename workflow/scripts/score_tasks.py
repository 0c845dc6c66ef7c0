r"""Score a model on benchmark tasks, with 95 % bootstrap intervals over the documents.

    python workflow/scripts/score_tasks.py --documents output/evaluation/student_kd/banks.documents.jsonl \
        --results output/evaluation/student_kd/banks.lm_eval.json \
        --out output/evaluation/student_kd/banks.tasks.json \
        --statistics-out output/evaluation/student_kd/banks.tasks.npz
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_json
from distill.common.options import add_options
from distill.evaluation.options import ScoringOptions
from distill.evaluation.task_scores import read_run, score_tasks, write_task_scores

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True, metavar="FILE", help="documents.jsonl of run_tasks.py")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="lm_eval.json of run_tasks.py")
    add_options(parser, ScoringOptions, only=["bootstrap", "seed"])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="tasks.json")
    parser.add_argument("--statistics-out", type=Path, metavar="FILE", help="tasks.npz, for compare_models.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score the tasks and write the files."""
    args = parse_args(argv)
    scores = read_run(args.documents, args.results)
    options = ScoringOptions(bootstrap=args.bootstrap, seed=args.seed)
    content = score_tasks({args.out.absolute().parent.name: scores}, options)
    if args.statistics_out:
        write_task_scores(args.statistics_out, scores)
    write_json(args.out, content)
    logger.info("%d scores of tasks -> %s", len(content["n"]), args.out)


if __name__ == "__main__":
    run_script(main)
