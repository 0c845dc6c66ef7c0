"""Merges the answers of a category's shards into one file, in the order of its prompts."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.errors import MOST_SHOWN, InputError, format_problem
from distill.common.files import read_jsonl, write_json, write_jsonl
from distill.teacher.shards import Shard, get_shard

logger = logging.getLogger(__name__)

HIGHEST = ("peak_memory_mb", "peak_reserved_mb")
RATE = "tokens_per_second"


class ShardAnswers:
    """Reads the answers that one shard's job wrote, prompt by prompt, and the counts of its stats file.

    Args:
        shard: the shard.
        answers: its answers (JSONL).
        stats: its counts (JSON).
    """

    def __init__(self, shard: Shard, answers: Path, stats: Path):
        self.shard, self.path = shard, answers
        self.stats = read_stats(stats)
        self.lines = read_jsonl(answers)
        self.pending = next(self.lines, None)
        self.prompts = 0
        self.unanswered: list[int] = []

    def take(self, prompt: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the records of the shard's next prompt, in the order of their samples.

        Raises:
            InputError: a sample is duplicated or out of order; names file and line.
        """
        self.prompts += 1
        last = -1
        while self.pending is not None and self.pending[1].get("uid") == prompt["uid"]:
            line, record = self.pending
            sample = record.get("sample", 0)
            if sample <= last:
                raise InputError(format_problem(self.path, line, "sample", f"a number above {last}", sample))
            yield record
            last = sample
            self.pending = next(self.lines, None)
        if last < 0:
            self.unanswered.append(prompt["id"])

    def check_end(self) -> None:
        """Check that no answer is left over, and that only overlong and refused prompts have none.

        Raises:
            InputError: an answer belongs to another prompt, or a prompt lacks one; names file and line, or the ids.
        """
        if self.pending is not None:
            line, record = self.pending
            expected = f"the prompts of shard {self.shard} in their order, each once"
            raise InputError(format_problem(self.path, line, "uid", expected, record.get("uid", "nothing")))
        left_out = self.stats["overlong"] + self.stats.get("refused", 0)  # older versions refused none
        if (self.prompts, len(self.unanswered)) != (self.stats["prompts"], left_out):
            ids = ", ".join(map(str, self.unanswered[:MOST_SHOWN]))
            listed = f" (ids {ids}{', …' if len(self.unanswered) > MOST_SHOWN else ''})" if ids else ""
            raise InputError(
                f"{self.path}: shard {self.shard} has {self.prompts} prompts, {len(self.unanswered)} of them without "
                f"an answer{listed}; expected {self.stats['prompts']} prompts, {left_out} of them overlong or "
                f"refused, as in its stats"
            )


def read_stats(path: Path) -> dict[str, Any]:
    """Read the counts of one job.

    Raises:
        InputError: the file is not JSON or lacks a count; names it.
    """
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    needed = ("prompts", "overlong", "generated_tokens", "seconds", *HIGHEST, RATE)
    if not isinstance(stats, dict) or not all(isinstance(stats.get(name), int | float) for name in needed):
        raise InputError(f"{path}: expected an object with the numbers {', '.join(needed)}")
    return stats


def merge_stats(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of all shards together, in the order of the first one's.

    Counts are summed, and settings, which are the same for all shards, are kept. `seconds` is the total time of all
    jobs, even if they ran in parallel; `tokens_per_second` is the average of a job. Of both peaks the highest is kept.
    """
    merged: dict[str, Any] = {}
    for name, first in shards[0].items():
        values = [stats[name] for stats in shards]
        if isinstance(first, dict):
            merged[name] = count_together(values)
        else:
            merged[name] = first if isinstance(first, bool | None) else sum(values)
    merged["seconds"] = seconds = round(merged["seconds"], 3)
    merged[RATE] = round(merged["generated_tokens"] / seconds, 1) if seconds else 0.0
    for name in HIGHEST:
        merged[name] = max(stats[name] for stats in shards)
    return merged


def count_together(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sums of several counts by name, the highest first."""
    return dict(sum(map(Counter, counts), Counter()).most_common())


def merge_answers(prompts: Iterable[dict[str, Any]], shards: Sequence[ShardAnswers]) -> Iterator[dict[str, Any]]:
    """Yield all answers in the prompts' order, with one record per shard in memory.

    Raises:
        InputError: an answer is missing, duplicated or belongs to another prompt.
    """
    for prompt in prompts:
        yield from shards[get_shard(prompt["uid"], len(shards)).number - 1].take(prompt)
    for shard in shards:
        shard.check_end()


def gather_answers(prompts: Path, answers: Sequence[Path], stats: Sequence[Path], out: Path, out_stats: Path) -> None:
    """Write the answers and counts that a single job for all prompts would write.

    Args:
        prompts: the category's prompts (JSONL).
        answers: answers of each shard, from the first to the last (JSONL).
        stats: counts of each shard, in the same order (JSON).
        out: the category's answers.
        out_stats: the category's counts.

    Raises:
        InputError: an answer is missing, duplicated or belongs to another prompt, or a stats file is missing.
    """
    if len(answers) != len(stats):
        raise InputError(f"expected a stats file for each of {len(answers)} shards, found {len(stats)}")
    pairs = zip(answers, stats, strict=True)
    shards = [ShardAnswers(Shard(number, len(answers)), *pair) for number, pair in enumerate(pairs, start=1)]
    records = write_jsonl(out, merge_answers((prompt for _, prompt in read_jsonl(prompts)), shards))
    write_json(out_stats, merge_stats([shard.stats for shard in shards]))
    asked = sum(shard.prompts for shard in shards)
    left_out = sum(len(shard.unanswered) for shard in shards)
    text = "%s: %d prompts of %d shards = %d with %d answers + %d overlong or refused"
    logger.info(text, out, asked, len(shards), asked - left_out, records, left_out)
