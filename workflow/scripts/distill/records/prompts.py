"""Prompts for the teacher, with their labels."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.errors import InputError, format_problem, raise_problems
from distill.common.files import read_jsonl, write_jsonl
from distill.records.conversations import find_answer_start, pick_context
from distill.records.options import PromptOptions
from distill.records.raw_records import Record, check_label, check_record, get_fields, get_fields_uid, get_label
from distill.records.source_formats import ORIGINS

logger = logging.getLogger(__name__)

PROMPT_OPTIONS = PromptOptions()


def check_mixed(record: Record, label_fields: Sequence[str], path: Path, line: int) -> None:
    """Check a mixed record.

    Raises:
        InputError: the record is malformed, its origin is unknown, or its uid does not match its texts.
    """
    problems = check_record(record, path, line) + check_label(record, label_fields, path, line)
    if record.get("origin") not in ORIGINS:
        problems.append(format_problem(path, line, "origin", " | ".join(ORIGINS), record.get("origin")))
    if not problems and record.get("uid") != (uid := get_fields_uid(get_fields(record))):
        problems.append(format_problem(path, line, "uid", f"{uid} (hash of the prompt)", record.get("uid")))
    raise_problems(problems, "mixed records")


def list_targets(record: Record, label_fields: Sequence[str]) -> list[Record]:
    """Return a record for each answer in a checked record; its messages end with that answer.

    Earlier assistant turns with `"loss": false` are left out. The label in a field belongs to the last answer alone.
    """
    messages = record["messages"]
    earlier = [
        index
        for index, message in enumerate(messages[: find_answer_start(messages)])
        if message["role"] == "assistant" and message.get("loss") is not False
    ]
    unlabelled = {name: value for name, value in record.items() if name not in label_fields}
    return [*(unlabelled | {"messages": messages[: index + 1]} for index in earlier), record]


def read_prompts(
    path: Path, label_fields: Sequence[str], answer_key: str | None, options: PromptOptions = PROMPT_OPTIONS
) -> Iterator[dict[str, Any]]:
    """Yield `{"id", "uid", "system", "prompt", "label", "origin"}` for each prompt; `id` counts from 0.

    `original_output` is copied if the record has it, and `turns`, `tools` and `teacher_prompt` are added to prompts
    that have them; see `records/conversations.py`. The answer at the end of a record is never part of a prompt. The
    assistant turn of a GRPO record is a placeholder, so it never gives a label.

    Args:
        path: JSONL file of mixed records.
        label_fields: fields that may contain the true value; the first one present is used.
        answer_key: key of the true value in an SFT answer; None if labels are in fields only.
        options: which answers are targets, and what the teacher alone sees.

    Raises:
        InputError: a record is malformed; names file, line and field.
    """
    seen: set[bytes] = set()
    repeated = 0
    for line, record in read_jsonl(path):
        check_mixed(record, label_fields, path, line)
        for target in list_targets(record, label_fields) if options.targets == "all" else [record]:
            fields = get_fields(target)
            if options.teacher_prompt:
                fields.setdefault("teacher_prompt", options.teacher_prompt)
            uid = get_fields_uid(fields)
            if bytes.fromhex(uid) in seen:  # conversations that begin alike have turns in common
                repeated += 1
                continue
            label = get_label(target, record["origin"], label_fields, answer_key)
            known = {"id": len(seen), "uid": uid, "system": fields["system"], "prompt": fields["prompt"]}
            seen.add(bytes.fromhex(uid))
            original = {"original_output": record["original_output"]} if "original_output" in record else {}
            yield {**known, "label": label, "origin": record["origin"], **original, **pick_context(fields)}
    if repeated:
        logger.info("%s: %d turns are asked for once, since conversations begin alike", path, repeated)


def make_prompts(
    mix: Path,
    label_fields: Sequence[str],
    answer_key: str | None,
    out: Path,
    options: PromptOptions = PROMPT_OPTIONS,
) -> int:
    """Write the prompts of a file of mixed records and return their number.

    Raises:
        InputError: a record is malformed, or the file contains none.
    """
    counts: Counter[str] = Counter()

    def count(prompts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for prompt in prompts:
            counts["none" if prompt["label"] is None else "label"] += 1
            yield prompt
        if not counts:
            raise InputError(format_problem(mix, 1, "file", "at least one record", "an empty file"))

    total = write_jsonl(out, count(read_prompts(mix, label_fields, answer_key, options)))
    logger.info("%s: %d prompts = %d with a label + %d without", mix, total, counts["label"], counts["none"])
    return total
