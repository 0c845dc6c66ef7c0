r"""Evaluate a model on benchmark tasks of lm-evaluation-harness; needs the package lm_eval.

    python workflow/scripts/run_tasks.py --model output/student_kd/banks --tasks arc_easy hellaswag \
        --out output/evaluation/student_kd/banks.documents.jsonl \
        --results-out output/evaluation/student_kd/banks.lm_eval.json

Writes the scores of each document, and the results of lm-evaluation-harness. A run that was killed goes on from the
responses in the cache.
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_json, write_jsonl
from distill.common.gpu_claims import claim_gpus
from distill.common.options import add_options, read_options
from distill.evaluation.options import TaskOptions
from distill.generation.engine import read_source
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions, TemplateOptions

logger = logging.getLogger("run_tasks")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, TaskOptions)
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, BatchOptions)
    add_options(parser, DeviceOptions)
    parser.add_argument(
        "--cache", type=Path, default=Path("artifacts/task_responses"), help="folder of cached responses"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="documents.jsonl")
    parser.add_argument("--results-out", type=Path, required=True, metavar="FILE", help="lm_eval.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the tasks and write what they scored."""
    args = parse_args(argv)
    claim_gpus(args.device)
    from distill.evaluation.task_run import run_tasks  # imports torch; parse arguments first

    source = read_source(args)
    results, documents = run_tasks(source, read_options(args, TaskOptions), args.batch_size, args.cache)
    write_json(args.results_out, results)
    count = write_jsonl(args.out, documents)
    logger.info("%d documents of %s -> %s", count, ", ".join(args.tasks), args.out)


if __name__ == "__main__":
    run_script(main)
