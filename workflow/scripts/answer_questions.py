"""Answer fixed questions, which have no reference, with a model, to read the answers of all models side by side.

    python answer_questions.py --questions "What is rain?" --system "Answer briefly." --category banks \
        --model output/student_kd/banks --out output/evaluation/student_kd/banks.questions.jsonl
"""

import argparse
import logging
from pathlib import Path

from distill.common.digest import code_digest
from distill.common.errors import run_script
from distill.common.files import write_jsonl
from distill.common.options import add_options
from distill.evaluation.predict import answer_questions, find_journal, forget_others
from distill.generation.engine import build_engine
from distill.generation.options import add_engine_options
from distill.generation.sampling import Sampling
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions, TemplateOptions

logger = logging.getLogger("answer_questions")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", required=True, metavar="TEXT")
    parser.add_argument("--system", required=True, help="system prompt of all questions")
    parser.add_argument("--category", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--journal",
        type=Path,
        default=Path("artifacts/predicted"),
        help="folder of stored answers",
    )
    add_engine_options(parser)
    add_options(parser, BatchOptions)
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, DeviceOptions)
    add_options(parser, Sampling)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Answer the questions and write the file."""
    args = parse_args(argv)
    engine = build_engine(args)
    journal = find_journal(args.journal, args.out, code_digest(Path(__file__)))
    answers = answer_questions(args.questions, args.system, engine, journal)
    write_jsonl(args.out, ({"category": args.category} | answer for answer in answers))
    forget_others(journal, engine)
    logger.info("%d answers -> %s", len(answers), args.out)


if __name__ == "__main__":
    run_script(main)
