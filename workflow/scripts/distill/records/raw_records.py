"""Raw records, chat messages with further fields: how they are checked, identified and labelled."""

import hashlib
import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from distill.common.errors import format_problem
from distill.common.files import dump_json
from distill.records.answer_format import parse_answer

ROLES = ("system", "user", "assistant")
WRITABLE = (
    "values that JSON in UTF-8 can represent (no NaN, infinity, lone surrogate, byte that is not UTF-8, "
    "or very deep nesting)"
)
DEEPEST = 100  # Python's json module refuses about 1,000, less in the middle of a program
SEPARATOR = "\x1f"  # between system and user text in the hash

Record = dict[str, Any]


def check_message(message: Any, where: str) -> tuple[str, str, Any] | None:
    """Return (field, expected, found) for the first problem of a message; None if it is well-formed."""
    if not isinstance(message, dict):
        return where, "an object with role and content", message
    if message.get("role") not in ROLES:
        return f"{where}.role", " | ".join(ROLES), message.get("role")
    if not isinstance(message.get("content"), str):
        return f"{where}.content", "text", message.get("content")
    if not isinstance(message.get("loss", False), bool | None):
        return f"{where}.loss", "true | false", message["loss"]
    return None


def check_record(record: Record, path: str | PathLike[str], line: int) -> list[str]:
    """List the problems of a record's messages, each with file, line and field.

    A record starts with one system and one user message, neither of them blank. Any number of assistant turns follow.
    """
    messages = record.get("messages")
    if not isinstance(messages, list):
        return [format_problem(path, line, "messages", "a list of messages", messages)]
    faults = [check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if any(faults):
        return [format_problem(path, line, *fault) for fault in faults if fault]
    problems = []
    for role in ("system", "user"):
        texts = [message["content"] for message in messages if message["role"] == role]
        if len(texts) != 1 or not texts[0].strip():
            found = texts[0] if len(texts) == 1 else f"{len(texts)} messages"
            problems.append(format_problem(path, line, "messages", f"one {role} message that is not blank", found))
    if not problems and SEPARATOR in messages[0]["content"]:
        expected = "a system text without U+001F, which separates the texts in the uid"
        problems.append(format_problem(path, line, "messages[0].content", expected, messages[0]["content"]))
    roles = [message["role"] for message in messages]
    if not problems and roles[:2] != ["system", "user"]:
        problems.append(format_problem(path, line, "messages", "system, user, then assistant turns", roles))
    return problems


def measure_depth(value: Any) -> int:
    """Return how deeply lists and objects are nested: 0 for text or a number."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(measure_depth, inside), default=0)


def check_writable(record: Record, path: str | PathLike[str], place: int | str) -> list[str]:
    """List the problem of a record with values that cannot be written as JSON in UTF-8, or not be read back."""
    try:
        dump_json(record).encode()
        if measure_depth(record) > DEEPEST:
            raise ValueError(f"lists or objects inside each other more than {DEEPEST} times")
    except (ValueError, RecursionError) as error:
        return [format_problem(path, place, "record", WRITABLE, str(error))]
    return []


def get_texts(record: Record) -> tuple[str, str]:
    """Return (system text, user text) of a checked record."""
    return record["messages"][0]["content"], record["messages"][1]["content"]


def get_uid(system: str, user: str) -> str:
    """Identify a prompt by its texts alone: the first 32 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(f"{system}{SEPARATOR}{user}".encode()).digest()[:16].hex()


def get_answer_text(record: Record) -> str:
    """Return the assistant's answer; several turns (reasoning, then answer) are joined by line feeds.

    Turns with `"loss": false` are left out. They are not meant for training, so no label is read from them either.
    """
    turns = [m["content"] for m in record["messages"] if m["role"] == "assistant" and m.get("loss") is not False]
    return "\n".join(turns)


def check_label(record: Record, label_fields: Sequence[str], path: str | PathLike[str], place: int | str) -> list[str]:
    """List the problem of a record's label: the first label field that is present must contain a finite number."""
    for field in label_fields:
        value = record.get(field)
        if value is not None:
            return [] if is_finite(value) else [format_problem(path, place, field, "a finite number", value)]
    return []


def is_finite(value: Any) -> bool:
    """Whether the value is a number, not a boolean or text, that fits into a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def get_label(record: Record, origin: str, label_fields: Sequence[str], answer_key: str | None) -> float | None:
    """Return the true value of a checked record, or None.

    It is the first of `label_fields` that is present and not null. Without such a field, it is the value in the
    assistant's answer for origin `sft` only: the assistant turn of a `grpo` record is a placeholder.
    """
    for field in label_fields:
        if record.get(field) is not None:
            return float(record[field])
    if origin != "sft" or answer_key is None:
        return None
    return parse_answer(get_answer_text(record), answer_key).value
