r"""Measure the teacher's likelihood of the answers of all models to a category's test prompts.

    python judge_answers.py --predictions output/evaluation/*/banks.predictions.jsonl \
        --model Qwen/Qwen2.5-7B-Instruct --out output/evaluation/teacher/banks.judged.jsonl

fdistill coverage is the perplexity from these likelihoods: it is low if a student's answers are likely for the teacher.
The teacher is loaded once for all models. Answers that are in the journal are not judged again.
"""

import argparse
import logging
from pathlib import Path
from typing import cast

from distill.common.errors import run_script
from distill.common.files import write_jsonl
from distill.common.options import add_options
from distill.evaluation.judge import find_models, judge
from distill.evaluation.prediction_files import load_predictions
from distill.generation.engine import ENGINES, ScoringEngine, build_engine
from distill.generation.options import add_engine_options
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions, TemplateOptions

logger = logging.getLogger("judge_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help=".../MODEL/CATEGORY.predictions.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--journal", type=Path, default=Path("artifacts/judged"), help="folder with judged answers")
    add_options(parser, BatchOptions)
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, DeviceOptions)
    add_engine_options(parser, [name for name, kind in ENGINES.items() if kind.gives_likelihoods])
    parser.set_defaults(max_new_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)  # nothing is generated
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Judge the answers and write the file."""
    args = parse_args(argv)
    predictions = {model: load_predictions([path]) for model, path in find_models(args.predictions).items()}
    count = write_jsonl(args.out, judge(predictions, cast(ScoringEngine, build_engine(args)), args.journal))
    logger.info("%d judged answers from %d models -> %s", count, len(predictions), args.out)


if __name__ == "__main__":
    run_script(main)
