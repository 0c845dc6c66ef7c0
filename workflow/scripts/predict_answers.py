"""Answer a category's test prompts with a model, and measure how likely it finds the teacher's answers.

    python predict_answers.py --test processed/banks/test.jsonl --category banks --model output/student_kd/banks \
        --out output/evaluation/student_kd/banks.predictions.jsonl
"""

import argparse
import logging
from pathlib import Path

from distill.arguments import add_model_arguments, add_sampling_arguments, batch_size, read_sampling
from distill.errors import run_script
from distill.files import write_jsonl
from distill.splits import read_split

log = logging.getLogger("predict_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True, help="test.jsonl, with test.source and test.target beside")
    parser.add_argument("--category", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answer-key", help="key of the value in an answer's JSON; without it every text is usable")
    parser.add_argument("--batch-size", type=batch_size, help="auto or a number of records")
    parser.add_argument("--likelihood", action=argparse.BooleanOptionalAction, default=True, help="as perplexity needs")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Predict and write."""
    args = parse_args(argv)
    records = read_split(args.test.parent, args.test.stem)
    from distill.model_source import ModelSource
    from distill.prediction import predict  # torch: not before bad input ends it

    source = ModelSource(args.model, args.adapter, args.dtype, args.quantization, args.device)
    predictions = predict(records, source, read_sampling(args), args.batch_size, args.answer_key, args.likelihood)
    write_jsonl(args.out, ({"category": args.category} | prediction for prediction in predictions))
    usable = sum(prediction["usable"] for prediction in predictions)
    log.info("%d predictions: %d usable, %d not", len(predictions), usable, len(predictions) - usable)


if __name__ == "__main__":
    run_script(main)
