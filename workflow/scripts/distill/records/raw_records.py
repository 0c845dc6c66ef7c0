"""Raw records, chat messages with further fields: how they are checked, identified and labelled."""

import hashlib
import json
import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from distill.common.errors import format_problem
from distill.common.files import dump_json
from distill.records.answer_format import parse_answer
from distill.records.conversations import (
    ROLES,
    Fields,
    find_answer_start,
    find_order_problem,
    pick_context,
    read_conversation,
    to_fields,
)

WRITABLE = (
    "values that JSON in UTF-8 can represent (no NaN, infinity, lone surrogate, byte that is not UTF-8, "
    "or very deep nesting)"
)
DEEPEST = 100  # Python's json module refuses about 1,000, less in the middle of a program
SEPARATOR = "\x1f"  # between system and user text in the hash

Record = dict[str, Any]
Fault = tuple[str, str, Any]  # field, what is expected in it, what is found


def check_message(message: Any, where: str) -> Fault | None:
    """Return (field, expected, found) for the first problem of a message; None if it is well-formed."""
    if not isinstance(message, dict):
        return where, "an object with role and content", message
    if message.get("role") not in ROLES:
        return f"{where}.role", " | ".join(ROLES), message.get("role")
    calls = message.get("tool_calls")
    if calls and message["role"] != "assistant":
        return f"{where}.tool_calls", f"none in a message of {message['role']}", calls
    if not isinstance(message.get("content"), str) and not (calls and message.get("content") is None):
        return f"{where}.content", "text", message.get("content")
    if not isinstance(message.get("loss", False), bool | None):
        return f"{where}.loss", "true | false", message["loss"]
    if calls is not None and not (isinstance(calls, list) and all(map(is_call, calls))):
        return f"{where}.tool_calls", "a list of objects with function.name and function.arguments (an object)", calls
    return None


def is_call(call: Any) -> bool:
    """Whether a value is a tool call; its arguments may be an object, JSON text of one, or missing."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments")
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
        dump_json(found).encode()  # an escaped lone surrogate or a NaN cannot be written again
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | None)


def is_tool(tool: Any) -> bool:
    """Whether a value is the JSON schema of a function with a name."""
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def check_record(record: Record, path: str | PathLike[str], line: int) -> list[str]:
    """List the problems of a record's messages, tools and `teacher_prompt`, each with file, line and field."""
    return [format_problem(path, line, *fault) for fault in find_faults(record)]


def find_faults(record: Record) -> list[Fault]:
    """List the faults of a record's messages, tools and `teacher_prompt`.

    A record starts with a system and a user message; further turns follow, see `find_order_problem`. Any number of
    assistant turns end it. System and user messages are not blank.
    """
    messages = record.get("messages")
    if not isinstance(messages, list):
        return [("messages", "a list of messages", messages)]
    found = [check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if faults := [fault for fault in found if fault]:
        return faults
    faults = [*check_texts(messages), *check_context(record)]
    if not faults and SEPARATOR in messages[0]["content"]:
        expected = "a system text without U+001F, which separates the texts in the uid"
        faults.append(("messages[0].content", expected, messages[0]["content"]))
    if not faults and (order := find_order_problem(messages)):
        faults.append(("messages", order, [message["role"] for message in messages]))
    return faults


def check_texts(messages: Sequence[dict[str, Any]]) -> list[Fault]:
    """List (field, expected, found) of system and user messages that are missing, blank or too many."""
    texts = {role: [message["content"] for message in messages if message["role"] == role] for role in ROLES}
    faults = []
    for role, most in (("system", 1), ("user", None)):
        found, expected = texts[role], f"{'one' if most else 'a'} {role} message that is not blank"
        if not found or len(found) > (most or len(found)):
            faults.append(("messages", expected, f"{len(found)} messages"))
        elif blank := [text for text in found if not text.strip()]:
            faults.append(("messages", expected, blank[0]))
    return faults


def check_context(record: Record) -> list[Fault]:
    """List (field, expected, found) of a record's `tools` and `teacher_prompt`, which may be missing or null."""
    faults: list[Fault] = []
    tools, text = record.get("tools"), record.get("teacher_prompt")
    if tools is not None and not (isinstance(tools, list) and all(map(is_tool, tools))):
        faults.append(("tools", "a list of JSON schemas, objects with function.name", tools))
    if text is not None and not (isinstance(text, str) and text.strip()):
        faults.append(("teacher_prompt", "text that is not blank", text))
    return faults


def measure_depth(value: Any) -> int:
    """Return how deeply lists and objects are nested: 0 for text or a number."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(measure_depth, inside), default=0)


def check_writable(record: Record, path: str | PathLike[str], place: int | str) -> list[str]:
    """List the problem of a record with values that cannot be written as JSON in UTF-8, or not be read back."""
    return [format_problem(path, place, *fault) for fault in find_writing_faults(record)]


def find_writing_faults(record: Record) -> list[Fault]:
    """List the fault of a record that cannot be written; see `check_writable`."""
    try:
        dump_json(record).encode()
        if measure_depth(record) > DEEPEST:
            raise ValueError(f"lists or objects inside each other more than {DEEPEST} times")
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: a date or bytes in a Parquet file
        return [("record", WRITABLE, str(error))]
    return []


def get_texts(record: Record) -> tuple[str, str]:
    """Return (system text, first user text) of a checked record."""
    return record["messages"][0]["content"], record["messages"][1]["content"]


def get_fields(record: Record) -> Fields:
    """Return what a checked record asks for, as fields of a prompt: all messages before the answer at its end."""
    messages = record["messages"]
    return to_fields(messages[: find_answer_start(messages)], record)


def get_uid(system: str, user: str) -> str:
    """Identify a prompt by its texts alone: the first 32 hexadecimal digits of their SHA-256."""
    return hash_text(f"{system}{SEPARATOR}{user}")


def get_fields_uid(fields: Fields) -> str:
    """Identify a prompt by its fields: by its two texts as in `get_uid`, unless it has turns, tools or the like."""
    if not (context := pick_context(fields)):
        return get_uid(fields["system"], fields["prompt"])
    texts = {name: fields[name] for name in ("system", "prompt")}
    content = json.dumps(texts | context, ensure_ascii=False, sort_keys=True)
    return hash_text(SEPARATOR + content)  # a single user text has a system text before the separator


def get_split_key(fields: Fields) -> str:
    """Return the key whose hash decides a prompt's split: for a single user text its uid.

    Otherwise it is the uid of the system text and the first user text alone, so that all turns of a conversation are in
    the same split, with those of other conversations that begin alike.
    """
    if not pick_context(fields):
        return str(fields["uid"])
    return get_uid(fields["system"], read_conversation(fields).turns[0]["content"])


def hash_text(text: str) -> str:
    """Return the first 32 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).digest()[:16].hex()


def get_answer_text(record: Record) -> str:
    """Return the answer at the end; several assistant turns (reasoning, then answer) are joined by line feeds.

    Turns with `"loss": false` are left out. They are not meant for training, so no label is read from them either.
    """
    turns = record["messages"][find_answer_start(record["messages"]) :]
    return "\n".join(turn["content"] or "" for turn in turns if turn.get("loss") is not False)


def check_label(record: Record, label_fields: Sequence[str], path: str | PathLike[str], place: int | str) -> list[str]:
    """List the problem of a record's label: the first label field that is present must contain a finite number."""
    return [format_problem(path, place, *fault) for fault in find_label_faults(record, label_fields)]


def find_label_faults(record: Record, label_fields: Sequence[str]) -> list[Fault]:
    """List the fault of a record's label; see `check_label`."""
    for field in label_fields:
        value = record.get(field)
        if value is not None:
            return [] if is_finite(value) else [(field, "a finite number", value)]
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
