"""What a chat template shows of conversations with several turns and tools, found by rendering small ones."""

from collections.abc import Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from distill.common.errors import InputError

if TYPE_CHECKING:
    from distill.models.chat import ChatTemplate

TURNS = (("user", "first question"), ("assistant", "first answer"), ("user", "second question"))
SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_harbour",
        "description": "Finds a harbour.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Name of the town."}},
            "required": ["town"],
        },
    },
}
CALL_ID = "harbour01"  # Mistral's templates require nine letters and digits
CALL = {"id": CALL_ID, "type": "function", "function": {"name": "find_harbour", "arguments": {"town": "Lisbon"}}}
TOOL_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Which harbour?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "find_harbour", "tool_call_id": CALL_ID, "content": "Alcantara"},
]


def find_missing(text: str, words: Sequence[str]) -> str:
    """Return the words that are not in a text, each in quotes; empty if it has all of them."""
    return ", ".join(repr(word) for word in words if word not in text)


def find_history_problem(chat: "ChatTemplate") -> str | None:
    """Return what a template leaves out of a conversation of several turns; None if it shows all of them."""
    turns = [{"role": role, "content": text} for role, text in TURNS]
    shown = chat.render([*chat.probe_system, *turns], add_generation_prompt=True)
    if missing := find_missing(shown, [text for _, text in TURNS]):
        return f"expected a chat template that shows earlier turns, found one that leaves out {missing} of a test"
    return None


def find_tool_problem(chat: "ChatTemplate") -> str | None:
    """Return why conversations with tools are not possible with a template; None if they are.

    It must show tools, calls and results. A call in an answer is text, in which a control token would be read as
    ordinary text, so it must write calls without one.
    """
    expected = "expected a chat template that renders tools, tool calls and tool results as text"
    asked, called, replied = ([*chat.probe_system, *TOOL_TURNS[:count]] for count in (1, 2, 3))
    try:
        prompt = chat.render(asked, add_generation_prompt=True, tools=[SCHEMA])
        call = chat.render(called, tools=[SCHEMA])
        result = chat.render(replied, add_generation_prompt=True, tools=[SCHEMA])
    except InputError as error:
        return f"{expected}, found none ({error})"
    if missing := find_missing(prompt, ["find_harbour"]) or find_missing(result, ["Lisbon", "Alcantara"]):
        return f"{expected}, found one that leaves out {missing} of a test"
    written = call[len(commonprefix([prompt, call])) :].rstrip().removesuffix(chat.answered[1].strip())
    if found := chat.control_tokens.search(written):
        return f"{expected}, found one whose calls have the control token {found[0]}"
    return None
