"""The teacher's answers to a category's prompts: generated once, stored one by one in the answer cache."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.common.reporter import Reporter
from distill.generation.cached_engine import CachedEngine
from distill.generation.engine import Engine, RefusedError
from distill.generation.sampling import Request, make_request
from distill.records.answer_format import parse_answer
from distill.records.conversations import pick_context
from distill.teacher.options import AnswerOptions

logger = logging.getLogger(__name__)

MOST_SHOWN = 20  # overlong prompts listed in a message
Prompt = dict[str, Any]


@dataclass(frozen=True)
class AnswerSettings(AnswerOptions):
    """How many answers are generated per prompt, which are kept, and what a usable one contains.

    Attributes:
        answer_key: key of the number in the answer's JSON object; None accepts any text.
        max_new_tokens: maximum length of an answer, by which the free disk space is checked; None checks nothing.
    """

    answer_key: str | None = None
    max_new_tokens: int | None = None


def load_prompts(path: Path) -> list[Prompt]:
    """Read a file of prompts; texts that all prompts share are held in memory once.

    Raises:
        InputError: a line is not a JSON object; names file and line.
    """
    return [
        {sys.intern(name): sys.intern(value) if name == "system" else value for name, value in record.items()}
        for _, record in read_jsonl(path)
    ]


def drop_overlong(prompts: list[Prompt], cached: CachedEngine, overlong: str) -> list[Prompt]:
    """Return the prompts that fit the teacher's context; prompts with a cached answer do.

    Args:
        prompts: all prompts.
        cached: the teacher.
        overlong: `skip` to leave longer prompts out, `error` to stop.

    Raises:
        InputError: a prompt is too long and `overlong` is `error`; names ids, lengths and the limit.
    """
    new = [to_request(prompt, 0) for prompt in prompts if (prompt["uid"], 0) not in cached.cached]
    found = cached.engine.find_overlong(new) if new else {}
    if not found:
        return prompts
    named = [f"  id {prompt['id']}: {found[prompt['uid']]}" for prompt in prompts if prompt["uid"] in found]
    listed = "\n".join(
        [*named[:MOST_SHOWN], f"  and {len(named) - MOST_SHOWN} more"] if len(named) > MOST_SHOWN else named
    )
    text = f"{len(named)} of {len(prompts)} prompts are longer than the teacher's context:\n{listed}"
    if overlong == "error":
        raise InputError(f"{text}\n(set teacher.overlong to skip to leave them out)")
    logger.warning("%s\nthey are skipped", text)
    return [prompt for prompt in prompts if prompt["uid"] not in found]


def to_request(prompt: Prompt, sample: int) -> Request:
    """Return a prompt's record as a request to the teacher."""
    return make_request(prompt, sample, to_teacher=True)


def answer_prompts(
    prompts: list[Prompt], engine: Engine, settings: AnswerSettings, cache: Path, reporter: Reporter | None = None
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """Return the teacher's answers to all prompts, from the cache if possible.

    Args:
        prompts: from `load_prompts`, as `read_prompts` describes them.
        engine: the teacher.
        settings: how many answers are generated, and which are kept.
        cache: the answer cache's folder, with the answers of all teachers.
        reporter: shows the progress in trackers.

    Returns:
        An iterator over the records of teacher_outputs_{category}.jsonl in the prompts' order (a list would double the
        memory), and the counts of this run. `usable` and `rejected` count all answers, kept or not; `problems` those
        rejected, by problem; `retried` those beyond `samples`; `refused` the prompts without any answer because the
        server refused them, and `unanswered` those without a usable one.

    Raises:
        InputError: a prompt exceeds the context and `settings.overlong` is `error`, an answer cannot be generated, or
            the server refuses a prompt and `settings.refused` is `error`.
    """
    uids = {prompt["uid"] for prompt in prompts}
    cached = CachedEngine(
        engine,
        cache / engine.fingerprint(),
        settings.answer_key,
        uids,
        refused=settings.refused,
        longest=settings.max_new_tokens,
        reporter=reporter,
    )
    wanted = drop_overlong(prompts, cached, settings.overlong)
    generate_or_explain(cached, [to_request(prompt, sample) for prompt in wanted for sample in range(settings.samples)])
    for attempt in range(settings.retries):
        again = [prompt for prompt in wanted if None not in cached.find_problems(prompt["uid"])]
        if not again:
            break
        cached.counts["retried"] += len(again)
        generate_or_explain(cached, [to_request(prompt, settings.samples + attempt) for prompt in again])
    records = (
        record for prompt in wanted for record in keep_answers(prompt, cached.get_answers(prompt["uid"]), settings)
    )
    return records, {"prompts": len(prompts), "overlong": len(prompts) - len(wanted), **cached.stats()}


def generate_or_explain(cached: CachedEngine, requests: list[Request]) -> None:
    """Generate answers; the error about requests that a server refuses names the setting that skips them."""
    try:
        cached.generate(requests)
    except RefusedError as error:
        raise InputError(f"{error}\n(set teacher.refused to skip to leave them out)") from None


def keep_answers(prompt: Prompt, answers: list[dict[str, Any]], settings: AnswerSettings) -> list[dict[str, Any]]:
    """Return a prompt's output records: its usable answers, or with `keep: best` the one closest to the label.

    Without a label, and among equally close answers, the first one is the best. Without a usable answer, the first one
    is returned.
    """
    records = [to_output(prompt, answer, settings.answer_key) for answer in answers]
    usable = [record for record in records if record["usable"]]
    if not usable:
        return records[:1]
    if settings.keep == "best":
        label = prompt["label"]
        return [min(usable, key=lambda record: 0.0 if label is None else abs(record["parsed_value"] - label))]
    return usable


def to_output(prompt: Prompt, answer: dict[str, Any], answer_key: str | None) -> dict[str, Any]:
    """Return one record of teacher_outputs_{category}.jsonl."""
    parsed = parse_answer(answer["raw_output"], answer_key)
    return {
        "id": prompt["id"],
        "uid": prompt["uid"],
        "sample": answer["sample"],
        "system": prompt["system"],
        "prompt": prompt["prompt"],
        "raw_output": answer["raw_output"],
        "think": parsed.think,
        # An answer that is the whole text would stand twice.
        "answer": parsed.answer if parsed.answer != answer["raw_output"].strip() else None,
        "parsed_value": parsed.value,
        "usable": parsed.problem is None,
        "problem": parsed.problem,
        "label": prompt["label"],
        "origin": prompt["origin"],
        "finish_reason": answer["finish_reason"],
        "generated_tokens": answer["generated_tokens"],
        **({"original_output": prompt["original_output"]} if "original_output" in prompt else {}),
        **pick_context(prompt),
    }
