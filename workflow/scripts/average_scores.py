r"""Average the scores of a student's replicas over their training seeds, with the spread over the seeds.

The 95 % intervals are those of a bootstrap over the records, of the mean over the replicas. Several categories are
pooled into one set of scores.

    python workflow/scripts/average_scores.py \
        --statistics output/evaluation/student_kd-seed4{2,3,4}/banks.statistics.npz \
        --metrics bleu rouge ppl --out output/evaluation/student_kd/banks.metrics.json
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_json
from distill.common.options import read_options
from distill.evaluation.options import ScoringOptions, add_scoring_options
from distill.evaluation.record_statistics import pool, read_statistics
from distill.evaluation.seed_means import score_replicas

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--statistics", nargs="+", type=Path, required=True, metavar="FILE", help=".../REPLICA/CATEGORY.statistics.npz"
    )
    add_scoring_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score the replicas and write the metrics file with their means."""
    args = parse_args(argv)
    options = read_options(args, ScoringOptions)
    paths: dict[str, list[Path]] = {}
    for path in args.statistics:
        paths.setdefault(path.absolute().parent.name, []).append(path)
    replicas = {
        model: pool([read_statistics(path, options, args.answer_key) for path in files])
        for model, files in paths.items()
    }
    scores = score_replicas(replicas, options)
    write_json(args.out, scores)
    logger.info("averaged the scores of %s -> %s", ", ".join(replicas), args.out)


if __name__ == "__main__":
    run_script(main)
