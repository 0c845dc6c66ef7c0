"""Answer a category's test prompts with a model, and measure the model's likelihood of the teacher's answers.

    python predict_answers.py --test processed/banks/test.jsonl --category banks --model output/student_kd/banks \
        --out output/evaluation/student_kd/banks.predictions.jsonl

An engine that gives answers only, such as openai, needs --no-likelihood.
"""

import argparse
import logging
from pathlib import Path

from distill.common.digest import code_digest
from distill.common.errors import InputError, run_script
from distill.common.files import write_jsonl
from distill.common.options import add_options
from distill.evaluation.predict import find_journal, forget_others, get_test, predict
from distill.generation.engine import ENGINES, build_engine
from distill.generation.options import add_engine_options
from distill.generation.sampling import Sampling, make_request
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions, TemplateOptions
from distill.records.options import AnswerFormat
from distill.records.splits import read_split

logger = logging.getLogger("predict_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True, help="test.jsonl, next to test.source and test.target")
    parser.add_argument("--category", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--likelihood",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the likelihood of the references",
    )
    parser.add_argument(
        "--is-teacher", action="store_true", help="the model is the teacher, which sees the records' teacher_prompt"
    )
    parser.add_argument(
        "--journal",
        type=Path,
        default=Path("artifacts/predicted"),
        help="folder of stored answers and likelihoods",
    )
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": None})
    add_engine_options(parser)
    add_options(parser, BatchOptions)
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, DeviceOptions)
    add_options(parser, Sampling)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Answer the prompts and write the predictions."""
    args = parse_args(argv)
    if args.likelihood and not ENGINES[args.engine].configure(args.tokenizer).gives_likelihoods:
        raise InputError(
            f"--likelihood: expected --no-likelihood with --engine {args.engine}, which gives answers only"
        )
    records = read_split(args.test.parent, args.test.stem)
    engine = build_engine(args)
    requests = [make_request(get_test(record), to_teacher=args.is_teacher) for record in records]
    engine.check_requests(requests, str(args.test))
    journal = find_journal(args.journal, args.out, code_digest(Path(__file__)))
    predictions = predict(records, engine, args.answer_key, args.likelihood, journal, args.is_teacher)
    write_jsonl(args.out, ({"category": args.category} | prediction for prediction in predictions))
    forget_others(journal, engine, args.likelihood)
    usable = sum(prediction["usable"] for prediction in predictions)
    logger.info("%d predictions: %d usable, %d not usable", len(predictions), usable, len(predictions) - usable)


if __name__ == "__main__":
    run_script(main)
