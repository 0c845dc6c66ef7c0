"""Questions in Alpaca format (instruction, input, output) as records with messages."""

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
Place = int | str  # a line of JSONL, `record 3` of an array


def is_array(path: Path) -> bool:
    """Whether a file is a JSON array rather than JSONL, by its first character."""
    with open(path, "rb") as file:
        while block := file.read(4096):
            if text := block.removeprefix(BOM).lstrip():
                return text.startswith(b"[")
    return False


def read_array(path: Path) -> Iterator[tuple[Place, Any]]:
    """Yield (`record N` from 1, element) of a JSON array, one element in memory at a time.

    Raises:
        InputError: the file is no JSON; names the last whole record.
    """
    number = 0
    with open(path, "rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        try:
            for number, record in enumerate(ijson.items(file, "item"), start=1):
                yield f"record {number}", record
        except (ijson.JSONError, UnicodeDecodeError) as error:
            expected = f"a JSON array in UTF-8 (after record {number}: {error})"
            raise InputError(format_problem(path, f"record {number + 1}", "record", expected, "other text")) from None


def read_records(path: Path) -> Iterator[tuple[Place, Any]]:
    """Yield (place, record) of a file in either shape."""
    return read_array(path) if is_array(path) else read_jsonl(path)


def check_question(record: Any, path: Path, place: Place) -> list[str]:
    """The problems of one record, each with file, place and field."""
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
        problems.append(format_problem(path, place, "history", "nothing (one turn a record)", record["history"]))
    return problems


def to_record(question: dict[str, Any], system: str) -> Record:
    """A checked question as a mixed record: messages without an answer, and the answer as `original_output`.

    Instruction and input are joined by a line feed. A system text of the question's own goes before the configured one.
    """
    user = "\n".join(text for text in (question["instruction"], question.get("input")) if text and text.strip())
    system = question["system"] if (question.get("system") or "").strip() else system
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    taken = ("instruction", "input", "output", "system", "history", "messages")
    others = {name: plain(value) for name, value in question.items() if name not in taken}
    original = question["output"] if question["output"].strip() else None
    return {**others, "messages": messages, "original_output": original, "origin": ORIGIN, "uid": get_uid(system, user)}


def plain(value: Any) -> Any:
    """A value as json makes it: ijson's numbers are decimal."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def read_alpaca(category: str, path: Path, system: str, out: Path) -> int:
    """Write a category's questions as mixed records; of equal prompts the first one stays. Returns how many.

    Raises:
        InputError: the file is missing or empty, or holds bad records (all are listed).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    problems: list[str] = []
    counts: Counter[str] = Counter()
    for place, question in read_records(path):
        counts["records"] += 1
        found = check_question(question, path, place)
        problems += found if len(problems) < MOST_SHOWN else [""] * len(found)
    if not counts["records"]:
        problems.append(format_problem(path, 1, "file", "at least one record", "an empty file"))
    raise_problems(problems, f"raw records of {category}")
    seen: set[bytes] = set()

    def take() -> Iterator[Record]:
        for _, question in read_records(path):
            record = to_record(question, system)
            uid = bytes.fromhex(record["uid"])
            if uid not in seen:
                seen.add(uid)
                counts["without_output"] += record["original_output"] is None
                yield record

    taken = write_jsonl(out, take())
    text = "%s: %d records = %d taken + %d duplicate prompts dropped; %d of the taken ones have no output (%s)"
    logger.info(text, category, counts["records"], taken, counts["records"] - taken, counts["without_output"], path)
    return taken
