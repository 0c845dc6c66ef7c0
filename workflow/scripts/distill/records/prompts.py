"""Prompts for the teacher, with their labels."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.errors import InputError, format_problem, raise_problems
from distill.common.files import read_jsonl, write_jsonl
from distill.records.raw_records import Record, check_label, check_record, get_label, get_texts, get_uid
from distill.records.source_formats import ORIGINS

logger = logging.getLogger(__name__)


def check_mixed(record: Record, label_fields: Sequence[str], path: Path, line: int) -> None:
    """Check a mixed record.

    Raises:
        InputError: the record is malformed, its origin is unknown, or its uid does not match its texts.
    """
    problems = check_record(record, path, line) + check_label(record, label_fields, path, line)
    if record.get("origin") not in ORIGINS:
        problems.append(format_problem(path, line, "origin", " | ".join(ORIGINS), record.get("origin")))
    if not problems and record.get("uid") != (uid := get_uid(*get_texts(record))):
        problems.append(format_problem(path, line, "uid", f"{uid} (hash of system and user text)", record.get("uid")))
    raise_problems(problems, "mixed records")


def read_prompts(path: Path, label_fields: Sequence[str], answer_key: str | None) -> Iterator[dict[str, Any]]:
    """Yield `{"id", "uid", "system", "prompt", "label", "origin"}` for each mixed record; `id` counts from 0.

    `original_output` is copied if the record has it. Assistant turns are never part of a prompt. The assistant turn of
    a GRPO record is a placeholder, so it never gives a label.

    Args:
        path: JSONL file of mixed records.
        label_fields: fields that may contain the true value; the first one present is used.
        answer_key: key of the true value in an SFT answer; None if labels are in fields only.

    Raises:
        InputError: a record is malformed; names file, line and field.
    """
    for number, (line, record) in enumerate(read_jsonl(path)):
        check_mixed(record, label_fields, path, line)
        system, user = get_texts(record)
        label = get_label(record, record["origin"], label_fields, answer_key)
        known = {"id": number, "uid": record["uid"], "system": system, "prompt": user}
        original = {"original_output": record["original_output"]} if "original_output" in record else {}
        yield {**known, "label": label, "origin": record["origin"], **original}


def make_prompts(mix: Path, label_fields: Sequence[str], answer_key: str | None, out: Path) -> int:
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

    total = write_jsonl(out, count(read_prompts(mix, label_fields, answer_key)))
    logger.info("%s: %d prompts = %d with a label + %d without", mix, total, counts["label"], counts["none"])
    return total
