"""Conversations: what a model is asked, from one user text up to several turns with tools, and how files hold it.

Prompts, answers and predictions have the fields `system` and `prompt`, the text of the turn that is answered. A record
that has more also has some of `CONTEXT_FIELDS`:

- `turns`: all messages after the system text, up to the one that is answered; left out for a single user text.
- `tools`: JSON schemas of the functions that the assistant may call.
- `teacher_prompt`: text that stands before the system text in the teacher's prompt alone.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from distill.common.files import dump_json

CONTEXT_FIELDS = ("turns", "tools", "teacher_prompt")
ROLES = ("system", "user", "assistant", "tool")
MESSAGE_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")  # what chat templates read
# Which roles may follow; `call` is an assistant's turn with tool calls.
FOLLOWERS = {
    "system": ("user",),
    "user": ("assistant", "call"),
    "call": ("tool",),
    "tool": ("tool", "assistant", "call"),
    "assistant": ("user",),
}

Fields = dict[str, Any]
Message = dict[str, Any]


class Conversation(NamedTuple):
    """What a model is asked.

    Attributes:
        system: the system text.
        turns: messages after it, as chat templates read them; the last one, by the user or a tool, is answered.
        tools: JSON schemas of the functions that the assistant may call.
    """

    system: str
    turns: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is a single user text."""
        return len(self.turns) == 1 and not self.tools

    @property
    def has_tools(self) -> bool:
        """Whether it has tools, tool calls or tool results."""
        return bool(self.tools) or any(get_kind(turn) in ("call", "tool") for turn in self.turns)

    @property
    def messages(self) -> list[Message]:
        """All messages, with the system text as the first."""
        return [{"role": "system", "content": self.system}, *self.turns]


def ask(system: str, prompt: str) -> Conversation:
    """Return the conversation of a single user text."""
    return Conversation(system, [{"role": "user", "content": prompt}])


def read_conversation(fields: Mapping[str, Any]) -> Conversation:
    """Return what a student is asked by a record with `system` and `prompt`, see the module."""
    plain = ask(fields["system"], fields["prompt"])
    return Conversation(plain.system, fields.get("turns") or plain.turns, fields.get("tools") or ())


def read_teacher_conversation(fields: Mapping[str, Any]) -> Conversation:
    """Return what the teacher is asked: the same with the text of `teacher_prompt` before the system text."""
    asked = read_conversation(fields)
    first = fields.get("teacher_prompt")
    return asked._replace(system=f"{first}\n\n{asked.system}") if first else asked


def to_fields(messages: Sequence[Message], record: Mapping[str, Any]) -> Fields:
    """Return the fields of checked messages up to the turn that is answered; `tools` and the like are the record's."""
    system, *turns = map(clean_message, messages)
    own = {**record, "turns": turns if len(turns) > 1 else None}
    context = {name: own[name] for name in CONTEXT_FIELDS if own.get(name)}
    return {"system": system["content"], "prompt": turns[-1]["content"], **context}


def pick_context(record: Mapping[str, Any]) -> Fields:
    """Return the fields of a record that a single user text does not have."""
    return {name: record[name] for name in CONTEXT_FIELDS if record.get(name)}


def clean_message(message: Message) -> Message:
    """Return what chat templates read of a checked message: text as `content`, and arguments of calls as objects."""
    kept = {name: message[name] for name in MESSAGE_FIELDS if message.get(name)}
    calls = {"tool_calls": [clean_call(call) for call in kept["tool_calls"]]} if "tool_calls" in kept else {}
    return {"role": message["role"], "content": "", **kept, **calls}


def clean_call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object, where OpenAI's format has JSON in a string."""
    function = call["function"]
    arguments = function.get("arguments")
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    return call | {"type": "function", "function": {"name": function["name"], "arguments": found or {}}}


def find_answer_start(messages: Sequence[Message]) -> int:
    """Return the index of the first of the assistant's turns at the end, or the number of messages without any."""
    start = len(messages)
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    return start


def get_kind(message: Message) -> str:
    """Return a message's role; `call` for an assistant's turn with tool calls."""
    return "call" if message["role"] == "assistant" and message.get("tool_calls") else str(message["role"])


def find_order_problem(messages: Sequence[Message]) -> str | None:
    """Return what is wrong with the order of the roles, as expectation; None if it is right.

    Several assistant turns in a row are allowed at the end only, where they are one answer.
    """
    kinds = [get_kind(message) for message in messages[: find_answer_start(messages) + 1]]
    if kinds[:1] != ["system"] or len(kinds) < 2:
        return "system, user, then assistant turns"
    for index, (before, after) in enumerate(pairwise(kinds), start=1):
        if after not in FOLLOWERS[before]:
            followers = dict.fromkeys(kind.replace("call", "assistant") for kind in FOLLOWERS[before])
            name = "an assistant's tool calls" if before == "call" else f"a message of {before}"
            return f"{' or '.join(followers)} after {name} (messages[{index}])"
    return None


def format_turns(fields: Mapping[str, Any]) -> str:
    """Return a prompt's turns as one text: the user's text, or each of several turns with its role before it."""
    turns = read_conversation(fields).turns
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {format_turn(turn)}" for turn in turns)


def format_turn(turn: Message) -> str:
    """Return a turn's text, followed by its tool calls as JSON."""
    calls = [dump_json(call["function"]) for call in turn.get("tool_calls", ())]
    return "\n".join([turn["content"], *calls] if turn["content"] else calls)
