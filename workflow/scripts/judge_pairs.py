r"""Have a judge compare a model's answers with those of another model, each pair in both orders.

    python workflow/scripts/judge_pairs.py --predictions output/evaluation/student_kd/banks.predictions.jsonl \
        --against output/evaluation/teacher/banks.predictions.jsonl --base-url https://api.openai.com/v1 \
        --model gpt-4.1 --out output/evaluation/student_kd/banks.verdicts.jsonl

The judge is any server with the OpenAI API. Identical answers are a tie without a request. Verdicts that are in the
journal are not asked for again.
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_jsonl
from distill.common.options import add_options, list_options, read_options
from distill.evaluation.judge_pairs import describe_verdicts, judge_pairs, load_answers
from distill.evaluation.pairs import JOURNAL, read_instruction
from distill.evaluation.pairwise_options import PairwiseOptions

logger = logging.getLogger("judge_pairs")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = "…/MODEL/CATEGORY.predictions.jsonl"
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help=f"answers to judge, {files}")
    parser.add_argument("--against", type=Path, required=True, metavar="FILE", help="answers of the other model")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="verdicts.jsonl")
    parser.add_argument("--journal", type=Path, default=JOURNAL, help="folder of stored verdicts")
    add_options(parser, PairwiseOptions, only=[name for name in list_options(PairwiseOptions) if name != "against"])
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Judge the answers and write the verdicts."""
    args = parse_args(argv)
    model, other = (path.absolute().parent.name for path in (args.predictions, args.against))
    options = read_options(args, PairwiseOptions, against=other)
    predictions, against = load_answers(args.predictions, args.against)
    judged = judge_pairs(predictions, against, read_instruction(args.prompt), options, args.journal)
    write_jsonl(args.out, judged)
    logger.info("%s against %s, %s -> %s", model, other, describe_verdicts(judged), args.out)


if __name__ == "__main__":
    run_script(main)
