"""Generate the teacher's answers to a category's prompts.

    python generate_answers.py --prompts banks_teacher_prompts_base.jsonl --model Qwen/Qwen2.5-7B-Instruct \
        --out teacher_outputs_banks.jsonl --stats teacher_outputs_banks.stats.json

Answers are stored one by one under --cache: rerun the command to resume after a stop or a kill.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import run_script
from distill.common.files import write_json, write_jsonl
from distill.common.options import add_options, read_options
from distill.common.reporter import Reporter
from distill.common.trackers import TrackerOptions, check_installed
from distill.generation.engine import build_engine
from distill.generation.options import add_engine_options
from distill.generation.recommendation import recommend_vllm
from distill.generation.sampling import Sampling
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions, TemplateOptions
from distill.records.options import AnswerFormat
from distill.teacher.generate_answers import AnswerSettings, answer_prompts, load_prompts, to_request
from distill.teacher.options import AnswerOptions, CacheOptions
from distill.teacher.shards import parse_shard, select_shard

logger = logging.getLogger("generate_answers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="the prompts (JSONL)")
    parser.add_argument("--out", type=Path, required=True, help="output: the answers (JSONL)")
    parser.add_argument("--stats", type=Path, required=True, help="output: counts, speed and settings (JSON)")
    add_options(parser, CacheOptions)
    parser.add_argument("--shard", type=parse_shard, metavar="I-of-N", help="answer one part of the prompts")
    add_options(parser, AnswerOptions)
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": None})
    add_engine_options(parser)
    add_options(parser, BatchOptions)
    add_options(parser, ModelOptions)
    add_options(parser, TemplateOptions)
    add_options(parser, DeviceOptions)
    add_options(parser, Sampling)
    add_options(parser, TrackerOptions)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Generate the answers and write them with their counts."""
    args = parse_args(argv)
    check_installed(args.report_to)
    prompts = load_prompts(args.prompts)
    if args.shard:
        prompts = select_shard(prompts, args.shard)
    settings = read_options(args, AnswerSettings)
    engine = build_engine(args)
    engine.check_requests([to_request(prompt, 0) for prompt in prompts], str(args.prompts))
    recommend_vllm(args)
    uids = sorted(prompt["uid"] for prompt in prompts)
    key = digest_of([engine.fingerprint(), settings.samples, uids]) if args.report_to else ""
    config = {"prompts": len(prompts), "samples": settings.samples, **engine.describe()}
    name = args.out.name.removesuffix(args.out.suffix)
    with Reporter(read_options(args, TrackerOptions), "generate_answers", name, key, config) as reporter:
        records, stats = answer_prompts(prompts, engine, settings, Path(args.cache), reporter)
    problems: Counter[str] = Counter()

    def note_problems(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in records:
            problems.update([record["problem"]] if record["problem"] else [])
            yield record

    written = write_jsonl(args.out, note_problems(records))
    write_json(args.stats, stats)
    found = "".join(f"; {problem}: {count}" for problem, count in problems.most_common())
    unusable = problems.total()
    logger.info("%d answers written: %d usable, %d unusable%s", written, written - unusable, unusable, found)


if __name__ == "__main__":
    run_script(main)
