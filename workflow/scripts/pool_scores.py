r"""Score the records of several categories together, from the statistics that score_predictions.py has counted.

    python workflow/scripts/pool_scores.py \
        --statistics output/evaluation/teacher/{banks,households}.statistics.npz \
        --metrics bleu rouge ppl answer --answer-key holding_log_delta \
        --out output/evaluation/teacher/all.metrics.json
"""

import argparse
import logging

from distill.common.errors import run_script
from distill.common.files import write_json
from distill.common.options import read_options
from distill.evaluation.options import ScoringOptions, add_scoring_options
from distill.evaluation.prediction_files import check_same_records
from distill.evaluation.record_statistics import pool, read_statistics
from distill.evaluation.scores import score

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--statistics", nargs="+", required=True, metavar="FILE", help="a model's .../CATEGORY.statistics.npz"
    )
    add_scoring_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Pool the statistics, score them and write the metrics file."""
    args = parse_args(argv)
    options = read_options(args, ScoringOptions)
    counted = pool([read_statistics(path, options, args.answer_key) for path in args.statistics])
    check_same_records({", ".join(args.statistics): list(counted.iterate_identities())})  # no category twice
    write_json(args.out, score(counted, options, args.answer_key))
    logger.info("scored %d records from %d file(s) -> %s", len(counted), len(args.statistics), args.out)


if __name__ == "__main__":
    run_script(main)
