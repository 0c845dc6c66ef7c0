"""The teacher's answers to a category's prompts, asked once and kept record by record."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.generation.cached_engine import Ledger
from distill.generation.engine import Engine
from distill.generation.sampling import Request
from distill.records.answer_format import parse_answer
from distill.teacher.options import AnswerOptions

logger = logging.getLogger(__name__)

SHOWN = 20  # overlong prompts named in a message
Prompt = dict[str, Any]


@dataclass(frozen=True)
class Asking(AnswerOptions):
    """How many answers are generated per prompt, which are kept, and what a usable one contains.

    Attributes:
        answer_key: key of the number in the answer's JSON object; None accepts any text.
    """

    answer_key: str | None = None


def load_prompts(path: Path) -> list[Prompt]:
    """A file of prompts; what all of them have in common is in memory once.

    Raises:
        InputError: a line is no JSON object; names file and line.
    """
    return [
        {sys.intern(name): sys.intern(value) if name == "system" else value for name, value in record.items()}
        for _, record in read_jsonl(path)
    ]


def drop_overlong(prompts: list[Prompt], ledger: Ledger, overlong: str) -> list[Prompt]:
    """The prompts that the teacher's context has room for, as for each that it has answered before.

    Raises:
        InputError: there are others and `overlong` is `error`; names their ids, lengths and the limit.
    """
    new = [to_request(prompt, 0) for prompt in prompts if (prompt["uid"], 0) not in ledger.cached]
    found = ledger.engine.find_overlong(new) if new else {}
    if not found:
        return prompts
    named = [f"  id {prompt['id']}: {found[prompt['uid']]}" for prompt in prompts if prompt["uid"] in found]
    listed = "\n".join([*named[:SHOWN], f"  and {len(named) - SHOWN} more"] if len(named) > SHOWN else named)
    text = f"{len(named)} of {len(prompts)} prompts are longer than the teacher's context:\n{listed}"
    if overlong == "error":
        raise InputError(f"{text}\n(teacher.overlong: skip leaves them out)")
    logger.warning("%s\nthey are left out", text)
    return [prompt for prompt in prompts if prompt["uid"] not in found]


def to_request(prompt: Prompt, sample: int) -> Request:
    """A prompt's record as a request."""
    return Request(prompt["id"], prompt["uid"], prompt["system"], prompt["prompt"], sample)


def answer_prompts(
    prompts: list[Prompt], engine: Engine, asking: Asking, cache: Path
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """The teacher's answer to every prompt, from the cache where it is there.

    Args:
        prompts: each with `id`, `uid`, `system`, `prompt`, `label` and `origin`; `original_output` where there is one.
        cache: folder of all teachers' answers.

    Returns:
        Records of teacher_outputs_{category}.jsonl in the prompts' order, made one by one as they are taken (all at
        once would double the memory), and the counts of this run. `usable` and `rejected` count all answers that were
        looked at, kept or not; `retried` those beyond `samples`; `unanswered` prompts without a usable one.

    Raises:
        InputError: prompts that the context has no room for.
    """
    ledger = Ledger(engine, cache / engine.fingerprint(), asking.answer_key, {prompt["uid"] for prompt in prompts})
    wanted = drop_overlong(prompts, ledger, asking.overlong)
    ledger.ask([to_request(prompt, sample) for prompt in wanted for sample in range(asking.samples)])
    for attempt in range(asking.retries):
        again = [prompt for prompt in wanted if not any(ledger.check(prompt["uid"]))]
        if not again:
            break
        ledger.counts["retried"] += len(again)
        ledger.ask([to_request(prompt, asking.samples + attempt) for prompt in again])
    records = (record for prompt in wanted for record in keep_answers(prompt, ledger.take(prompt["uid"]), asking))
    return records, {"prompts": len(prompts), "overlong": len(prompts) - len(wanted), **ledger.stats()}


def keep_answers(prompt: Prompt, answers: list[dict[str, Any]], asking: Asking) -> list[dict[str, Any]]:
    """Output records of a prompt: its usable answers or the one nearest to the label; the first where none is usable.

    Without a label the first usable answer is the best; equally near ones go by sample.
    """
    records = [to_output(prompt, answer, asking.answer_key) for answer in answers]
    usable = [record for record in records if record["usable"]]
    if not usable:
        return records[:1]
    if asking.keep == "best":
        label = prompt["label"]
        return [min(usable, key=lambda record: 0.0 if label is None else abs(record["parsed_value"] - label))]
    return usable


def to_output(prompt: Prompt, answer: dict[str, Any], answer_key: str | None) -> dict[str, Any]:
    """One line of teacher_outputs_{category}.jsonl."""
    parsed = parse_answer(answer["raw_output"], answer_key)
    return {
        "id": prompt["id"],
        "uid": prompt["uid"],
        "sample": answer["sample"],
        "system": prompt["system"],
        "prompt": prompt["prompt"],
        "raw_output": answer["raw_output"],
        "think": parsed.think,
        "answer": parsed.answer,
        "parsed_value": parsed.value,
        "usable": parsed.problem is None,
        "problem": parsed.problem,
        "label": prompt["label"],
        "origin": prompt["origin"],
        "finish_reason": answer["finish_reason"],
        "generated_tokens": answer["generated_tokens"],
        **({"original_output": prompt["original_output"]} if "original_output" in prompt else {}),
    }
