"""Shapes of the records that `read_records.py` reads, by source format, and how each becomes chat messages."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distill.records.conversations import Message
from distill.records.raw_records import Fault, Record, check_message

CONTEXT = ("system", "tools", "teacher_prompt")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class Draft(NamedTuple):
    """A record as chat messages, before their order is checked.

    Attributes:
        messages: the messages; a system message may be missing.
        names: the place of each message in the record, for errors.
        original: the recorded answer, where it can be the target of a training.
    """

    messages: list[Message]
    names: list[str]
    original: str | None = None


Parts = tuple[Draft, list[Fault]]


@dataclass(frozen=True)
class Shape:
    """A shape of records.

    Attributes:
        fields: the fields that are read, in addition to labels.
        required: the fields that every record must have; errors about a record as a whole name the first one.
        read: returns the draft of a record, and its faults; the draft is used only without faults.
        origin: `origin` in the mixed records. Records of origin `sft` may have their label in the answer.
        has_original: whether the mixed records have `original_output`.
    """

    fields: tuple[str, ...]
    required: tuple[str, ...]
    read: Callable[[Record], Parts]
    origin: str = "sft"
    has_original: bool = False


def read_alpaca(record: Record) -> Parts:
    """Return a question with `instruction`, `input` and `output` as a user message with its original answer."""
    faults: list[Fault] = []
    instruction = record.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        faults.append(("instruction", "text that is not blank", instruction))
    if not isinstance(record.get("input"), str | None):
        faults.append(("input", "text or nothing", record["input"]))
    if not isinstance(record.get("output"), str):
        faults.append(("output", "text", record.get("output", "nothing")))
    if record.get("history"):
        faults.append(("history", "nothing (only single-turn records are supported)", record["history"]))
    if faults:
        return Draft([], []), faults
    user = "\n".join(text for text in (record["instruction"], record.get("input")) if text and text.strip())
    return Draft([{"role": "user", "content": user}], ["instruction"], record["output"]), []


def read_messages(record: Record) -> Parts:
    """Return the chat messages of a record."""
    return read_list(record.get("messages"), "messages")


def read_list(messages: Any, field: str) -> Parts:
    """Return chat messages in a field of a record."""
    if not isinstance(messages, list):
        return Draft([], []), [(field, "a list of messages", messages)]
    names = [f"{field}[{index}]" for index in range(len(messages))]
    found = [check_message(message, name) for message, name in zip(messages, names, strict=True)]
    return Draft(messages, names), [fault for fault in found if fault]


def read_sharegpt(record: Record) -> Parts:
    """Return the turns of `conversations`, each with `from` and `value`, as chat messages."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return Draft([], []), [("conversations", "a list of turns with from and value", turns)]
    names = [f"conversations[{index}]" for index in range(len(turns))]
    faults = [fault for turn, name in zip(turns, names, strict=True) for fault in find_turn_faults(turn, name)]
    return Draft([] if faults else [read_turn(turn) for turn in turns], names), faults


def find_turn_faults(turn: Any, name: str) -> list[Fault]:
    """List the faults of a turn in ShareGPT format; `name` is its place in the record."""
    if not isinstance(turn, dict):
        return [(name, "an object with from and value", turn)]
    faults: list[Fault] = []
    if turn.get("from") not in SHAREGPT_ROLES:
        faults.append((f"{name}.from", " | ".join(SHAREGPT_ROLES), turn.get("from")))
    if not isinstance(turn.get("value"), str):
        faults.append((f"{name}.value", "text", turn.get("value")))
    elif turn.get("from") == "function_call" and parse_calls(turn["value"]) is None:
        faults.append((f"{name}.value", "JSON of a call with name and arguments, or a list of calls", turn["value"]))
    for key, allowed in (("loss", (True, False, None)), ("weight", (0, 1, None))):
        if turn.get(key) not in allowed:
            faults.append((f"{name}.{key}", "true | false" if key == "loss" else "0 | 1", turn[key]))
    return faults


def read_turn(turn: dict[str, Any]) -> Message:
    """Return a checked turn in ShareGPT format as a chat message; a turn of weight 0 is not meant for training."""
    message: Message = {"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}
    if turn["from"] == "function_call":
        functions = parse_calls(turn["value"]) or []
        message |= {"content": "", "tool_calls": [{"type": "function", "function": one} for one in functions]}
    return message | ({"loss": False} if turn.get("loss") is False or turn.get("weight") == 0 else {})


def parse_calls(text: str) -> list[dict[str, Any]] | None:
    """Return the calls in a turn from `function_call`, each with `name` and `arguments`; None if the text has none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = found if isinstance(found, list) else [found]
    are_calls = calls and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in calls)
    return [{"name": one["name"], "arguments": one.get("arguments")} for one in calls] if are_calls else None


def read_prompt_completion(record: Record) -> Parts:
    """Return `prompt` and `completion`, each a text or a list of chat messages, as chat messages."""
    prompt, faults = read_text(record.get("prompt"), "prompt", "user")
    completion, more = read_text(record.get("completion"), "completion", "assistant")
    if not more and (wrong := [turn for turn in completion.messages if turn["role"] != "assistant"]):
        more = [("completion", "messages of assistant alone", wrong[0])]
    if not faults and prompt.messages and prompt.messages[-1]["role"] == "assistant":
        faults = [("prompt", "a message of user or tool at the end, which the completion answers", prompt.messages[-1])]
    if faults or more:
        return prompt, [*faults, *more]
    has_calls = any(turn.get("tool_calls") for turn in completion.messages)
    original = "\n".join(turn["content"] or "" for turn in completion.messages if turn.get("loss") is not False)
    messages = [*prompt.messages, *completion.messages]
    return Draft(messages, [*prompt.names, *completion.names], None if has_calls else original), []


def read_text(value: Any, field: str, role: str) -> Parts:
    """Return a field that is a text of this role, or a list of chat messages."""
    if isinstance(value, list):
        return read_list(value, field)
    faults = [] if isinstance(value, str) else [(field, "text, or a list of messages", value)]
    if isinstance(value, str) and role == "user" and not value.strip():
        faults = [(field, "text that is not blank", value)]
    return Draft([{"role": role, "content": value}], [field]), faults


def parse_tools(tools: Any) -> Any:
    """Return the tools of a record, which may be JSON text, each as an object with `type` and `function`.

    What has another form is returned unchanged, for the check of the whole record.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            return tools
    return [wrap_tool(tool) for tool in tools] if isinstance(tools, list) else tools


def wrap_tool(tool: Any) -> Any:
    """Return the JSON schema of a function that stands alone, as ShareGPT has it, in an object with `function`."""
    is_alone = isinstance(tool, dict) and "function" not in tool and isinstance(tool.get("name"), str)
    return {"type": "function", "function": tool} if is_alone else tool


def list_fields(name: str, label_fields: Sequence[str]) -> list[str]:
    """Return the fields that a shape reads, with those of labels."""
    return list(dict.fromkeys([*SHAPES[name].fields, *label_fields]))


SHAPES = {
    "messages": Shape(("messages", *CONTEXT), ("messages",), read_messages),
    "alpaca": Shape(
        ("instruction", "input", "output", "history", "system", "teacher_prompt"),
        ("instruction", "output"),
        read_alpaca,
        origin="alpaca",
        has_original=True,
    ),
    "sharegpt": Shape(("conversations", *CONTEXT), ("conversations",), read_sharegpt),
    "prompt_completion": Shape(
        ("prompt", "completion", *CONTEXT), ("prompt", "completion"), read_prompt_completion, has_original=True
    ),
}
