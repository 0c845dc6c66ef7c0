r"""Score predictions, with 95 % bootstrap intervals over the records.

Several prediction files are pooled into one set of scores. The counts of each record, from which pool_scores.py,
average_scores.py and compare_models.py go on without the texts, are written with --statistics-out.

    python workflow/scripts/score_predictions.py \
        --predictions output/evaluation/teacher/banks.predictions.jsonl \
        --metrics bleu rouge ppl answer --answer-key holding_log_delta \
        --out output/evaluation/teacher/banks.metrics.json \
        --statistics-out output/evaluation/teacher/banks.statistics.npz
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_json
from distill.common.options import read_options
from distill.evaluation.metrics import needs_likelihoods
from distill.evaluation.options import ScoringOptions, add_scoring_options
from distill.evaluation.prediction_files import add_judgements, load_predictions, write_lines
from distill.evaluation.record_statistics import count_statistics, write_statistics
from distill.evaluation.scores import score
from distill.evaluation.verdict_files import add_verdicts

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", nargs="+", required=True, metavar="FILE", help="predictions.jsonl")
    parser.add_argument("--judged", nargs="+", metavar="FILE", help="files from judge_answers.py, for fdistill")
    parser.add_argument("--verdicts", nargs="+", metavar="FILE", help="files from judge_pairs.py, for pairwise")
    add_scoring_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics.json")
    parser.add_argument("--statistics-out", metavar="FILE", help="statistics.npz, for the scripts that compare models")
    parser.add_argument("--answers-out", metavar="FILE", help="text file with one answer per line, for other scorers")
    parser.add_argument("--references-out", metavar="FILE", help="text file with the references, in the same order")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score the predictions and write the metrics file."""
    args = parse_args(argv)
    records = load_predictions(args.predictions, needs_likelihoods(args.metrics))
    if args.judged:
        (model,) = {Path(path).parent.name for path in args.predictions}
        add_judgements(records, model, args.judged)
    if args.verdicts:
        add_verdicts(records, args.verdicts)
    options = read_options(args, ScoringOptions)
    counted = count_statistics(records, options, args.answer_key)
    for field, path in (("prediction", args.answers_out), ("reference", args.references_out)):
        if path:
            write_lines(records, field, path)
    if args.statistics_out:
        write_statistics(args.statistics_out, counted)
    scores = score(counted, options, args.answer_key)
    write_json(args.out, scores)
    counts = scores["counts"]
    logger.info(
        "scored %d records from %d file(s): %d usable, %d not usable, %d truncated at the length limit -> %s",
        counts["records"],
        len(args.predictions),
        counts["usable"],
        counts["records"] - counts["usable"],
        counts["truncated"],
        args.out,
    )


if __name__ == "__main__":
    run_script(main)
