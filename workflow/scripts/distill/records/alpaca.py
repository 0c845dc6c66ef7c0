"""Read questions in Alpaca format (instruction, input, output) and write them as mixed records with chat messages."""

import logging
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import ijson

from distill.common.errors import MOST_SHOWN, InputError, format_problem, raise_problems
from distill.common.files import BOM, read_jsonl, write_jsonl
from distill.records.raw_records import Record, get_uid

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


def read_array(path: Path) -> Iterator[tuple[Place, Any]]:
    """Yield (`record N` from 1, element) for each element of a JSON array.

    Only one element is in memory at a time.

    Raises:
        InputError: the file is not valid JSON; names file and record.
    """
    number = 0
    with open(path, "rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        try:
            for number, record in enumerate(ijson.items(file, "item"), start=1):
                yield f"record {number}", record
        except (ijson.JSONError, UnicodeDecodeError) as error:
            expected = f"a JSON array in UTF-8 (parsing stopped after record {number}: {error})"
            raise InputError(format_problem(path, f"record {number + 1}", "record", expected, "invalid text")) from None


def read_records(path: Path) -> Iterator[tuple[Place, Any]]:
    """Yield (place, record) for each record of a JSON array or a JSONL file."""
    return read_array(path) if is_array(path) else read_jsonl(path)


def check_question(record: Any, path: Path, place: Place) -> list[str]:
    """List the problems of one question, each with file, place and field."""
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
    others = {name: to_json_numbers(value) for name, value in question.items() if name not in taken}
    original = question["output"] if question["output"].strip() else None
    return {**others, "messages": messages, "original_output": original, "origin": ORIGIN, "uid": get_uid(system, user)}


def to_json_numbers(value: Any) -> Any:
    """Convert ijson's decimals to floats, as the json module returns them, also inside lists and objects.

    ijson's own `use_float` refuses integers of more than 64 bits.
    """
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: to_json_numbers(one) for name, one in value.items()}
    return [to_json_numbers(one) for one in value] if isinstance(value, list) else value


def check_questions(category: str, path: Path) -> int:
    """Check all questions of a file and return their number.

    Raises:
        InputError: the file is missing or empty, or contains invalid records (all of them are listed).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    problems: list[str] = []
    count = 0
    for place, question in read_records(path):
        count += 1
        found = check_question(question, path, place)
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


def read_alpaca(category: str, path: Path, system: str, out: Path) -> int:
    """Write a category's questions as mixed records; only the first of several equal prompts is kept.

    Args:
        category: name for messages.
        path: JSON array or JSONL file.
        system: system text for questions without their own.
        out: JSONL file to write.

    Returns:
        Number of records written.

    Raises:
        InputError: the file is missing or empty, or contains invalid records (all of them are listed).
    """
    total = check_questions(category, path)
    counts: Counter[str] = Counter()
    taken = write_jsonl(out, read_distinct(path, system, counts))
    text = "%s: %d records = %d taken + %d duplicate prompts dropped; %d of the records taken have no output (%s)"
    logger.info(text, category, total, taken, total - taken, counts["without_output"], path)
    return taken
