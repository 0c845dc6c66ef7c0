"""Measure how likely the teacher finds another model's answers to the test prompts.

    python judge_answers.py --predictions output/evaluation/student_kd/banks.predictions.jsonl \
        --model Qwen/Qwen2.5-7B-Instruct --out output/evaluation/student_kd/banks.judged.jsonl

Its perplexity is fdistill's coverage: low where a student says nothing that the teacher would not say.
"""

import argparse
import logging
from pathlib import Path

from distill.arguments import add_model_arguments, batch_size
from distill.errors import run_script
from distill.files import write_jsonl
from distill.prediction import judge
from distill.prediction_files import load_predictions

log = logging.getLogger("judge_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=batch_size, help="auto or a number of answers")
    add_model_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Judge and write."""
    args = parse_args(argv)
    predictions = load_predictions([args.predictions], [])
    from distill.local_engine import LocalEngine  # torch: not before bad input ends it
    from distill.model_source import ModelSource
    from distill.sampling import Sampling

    source = ModelSource(args.model, args.adapter, args.dtype, args.quantization, args.device)
    judged = judge(predictions, LocalEngine(source, Sampling(), args.batch_size))
    write_jsonl(args.out, judged)
    log.info("judged %d answers -> %s", len(judged), args.out)


if __name__ == "__main__":
    run_script(main)
