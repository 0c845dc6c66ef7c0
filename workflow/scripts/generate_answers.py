"""Ask the teacher for its answers to a category's prompts.

    python generate_answers.py --prompts banks_teacher_prompts_base.jsonl --model Qwen/Qwen2.5-7B-Instruct \
        --out teacher_outputs_banks.jsonl --stats teacher_outputs_banks.stats.json

Answers are kept one by one under --cache: a run that was stopped at any instant goes on from there.
"""

import argparse
import logging
from pathlib import Path

from distill.arguments import add_model_arguments, add_sampling_arguments, batch_size, read_sampling
from distill.errors import run_script
from distill.files import read_jsonl, write_json, write_jsonl

log = logging.getLogger("generate_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stats", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("artifacts/cache/teacher"))
    parser.add_argument("--answer-key", help="key of the value in an answer's JSON; without it every text is usable")
    parser.add_argument("--batch-size", type=batch_size, help="auto or a number of records")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Generate, parse and write."""
    args = parse_args(argv)
    from distill.model_source import ModelSource  # torch: not before bad arguments end it
    from distill.teacher import answer_prompts, teacher_outputs

    prompts = [record for _, record in read_jsonl(args.prompts)]
    source = ModelSource(args.model, args.adapter, args.dtype, args.quantization, args.device)
    answers, stats = answer_prompts(prompts, source, read_sampling(args), args.batch_size, args.cache)
    records, problems = teacher_outputs(prompts, answers, args.answer_key)
    rejected = sum(problems.values())
    write_jsonl(args.out, records)
    write_json(args.stats, stats | {"usable": len(records) - rejected, "rejected": rejected})
    found = "".join(f"; {problem}: {count}" for problem, count in problems.most_common())
    log.info("%d answers: %d usable, %d not%s", len(records), len(records) - rejected, rejected, found)


if __name__ == "__main__":
    run_script(main)
