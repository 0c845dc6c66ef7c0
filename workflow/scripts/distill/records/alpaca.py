"""Read questions in Alpaca format (instruction, input, output) and write them as mixed records with chat messages."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.errors import MOST_SHOWN, InputError, format_problem, raise_problems
from distill.common.files import BOM, read_jsonl, write_jsonl
from distill.records.json_array import read_array
from distill.records.raw_records import Record, check_label, check_writable, get_uid

logger = logging.getLogger(__name__)

ORIGIN = "alpaca"
Place = int | str  # line number in JSONL, or `record 3` in an array


def is_array(path: Path) -> bool:
    """Whether a file is a JSON array rather than JSONL, judged by its first character."""
    with open(path, "rb") as file:
        while block := file.read(4096):
            if text := block.removeprefix(BOM).lstrip():
                return text.startswith(b"[")
    return False


def read_records(path: Path) -> Iterator[tuple[Place, Any]]:
    """Yield (place, record) for each record of a JSON array or a JSONL file."""
    return read_array(path) if is_array(path) else read_jsonl(path)


def check_question(record: Any, path: Path, place: Place) -> list[str]:
    """List the problems of a question's texts, each with file, place and field."""
    if not isinstance(record, dict):
        return [format_problem(path, place, "record", "an object with instruction, input and output", record)]
    problems = []
    instruction = record.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        problems.append(format_problem(path, place, "instruction", "text that is not blank", instruction))
    for field in ("input", "system"):
        if not isinstance(record.get(field), str | None):
            problems.append(format_problem(path, place, field, "text or nothing", record[field]))
    if not isinstance(record.get("output"), str):
        problems.append(format_problem(path, place, "output", "text", record.get("output", "nothing")))
    if record.get("history"):
        expected = "nothing (only single-turn records are supported)"
        problems.append(format_problem(path, place, "history", expected, record["history"]))
    return problems


def to_record(question: dict[str, Any], system: str) -> Record:
    """Convert a checked question to a mixed record, whose answer is in `original_output` and not in the messages.

    Args:
        question: instruction and input, which are joined by a line feed; further fields are copied.
        system: system text for questions without their own.
    """
    user = "\n".join(text for text in (question["instruction"], question.get("input")) if text and text.strip())
    system = question["system"] if (question.get("system") or "").strip() else system
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    taken = ("instruction", "input", "output", "system", "history", "messages")
    others = {name: value for name, value in question.items() if name not in taken}
    original = question["output"] if question["output"].strip() else None
    return {**others, "messages": messages, "original_output": original, "origin": ORIGIN, "uid": get_uid(system, user)}


def check_questions(category: str, path: Path, label_fields: Sequence[str]) -> int:
    """Check all questions of a file, with the labels in `label_fields`, and return their number.

    Raises:
        InputError: the file is missing or empty, or contains invalid records (all of them are listed).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    problems: list[str] = []
    count = 0
    for place, question in read_records(path):
        count += 1
        found = check_question(question, path, place) or [
            *check_label(question, label_fields, path, place),
            *check_writable(question, path, place),
        ]
        problems += found if len(problems) < MOST_SHOWN else [""] * len(found)
    if not count:
        problems.append(format_problem(path, 1, "file", "at least one record", "an empty file"))
    raise_problems(problems, f"raw records of {category}")
    return count


def read_distinct(path: Path, system: str, counts: Counter[str]) -> Iterator[Record]:
    """Yield checked questions as mixed records; only the first of several equal prompts is kept.

    Records without an answer are counted in `counts["without_output"]`.
    """
    seen: set[bytes] = set()
    for _, question in read_records(path):
        record = to_record(question, system)
        uid = bytes.fromhex(record["uid"])
        if uid not in seen:
            seen.add(uid)
            counts["without_output"] += record["original_output"] is None
            yield record


def read_alpaca(category: str, path: Path, system: str, out: Path, label_fields: Sequence[str] = ()) -> int:
    """Write a category's questions as mixed records; only the first of several equal prompts is kept.

    Args:
        category: name for messages.
        path: JSON array or JSONL file.
        system: system text for questions without their own.
        out: JSONL file to write.
        label_fields: fields that may contain the true value; the first one present must be a number.

    Returns:
        Number of records written.

    Raises:
        InputError: the file is missing or empty, or contains invalid records (all of them are listed).
    """
    total = check_questions(category, path, label_fields)
    counts: Counter[str] = Counter()
    taken = write_jsonl(out, read_distinct(path, system, counts))
    text = "%s: %d records = %d taken + %d duplicate prompts dropped; %d of the records taken have no output (%s)"
    logger.info(text, category, total, taken, total - taken, counts["without_output"], path)
    return taken
