r"""Measure how likely the teacher finds the answers of all models to a category's test prompts.

    python judge_answers.py --predictions output/evaluation/*/banks.predictions.jsonl \
        --model Qwen/Qwen2.5-7B-Instruct --out output/evaluation/teacher/banks.judged.jsonl

Its perplexity is fdistill's coverage: low where a student says nothing that the teacher would not say. The teacher is
loaded once for all of them, and reads only what it has not read before.
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
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions

logger = logging.getLogger("judge_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help=".../MODEL/CATEGORY.predictions.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--journal", type=Path, default=Path("artifacts/judged"), help="folder of what was read before")
    add_options(parser, BatchOptions)
    add_options(parser, ModelOptions)
    add_options(parser, DeviceOptions)
    engines = [name for name, kind in ENGINES.items() if kind.gives_likelihoods]
    parser.add_argument("--engine", choices=engines, default="transformers")
    parser.set_defaults(max_new_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)  # nothing is generated
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Judge and write."""
    args = parse_args(argv)
    predictions = {model: load_predictions([path]) for model, path in find_models(args.predictions).items()}
    count = write_jsonl(args.out, judge(predictions, cast(ScoringEngine, build_engine(args)), args.journal))
    logger.info("%d judged answers of %d models -> %s", count, len(predictions), args.out)


if __name__ == "__main__":
    run_script(main)
