"""Parse a model's answer: the reasoning, the answer block, the JSON object inside it, and the value of one key."""

import json
import math
import re
from typing import Any, NamedTuple

MINUS = "\N{MINUS SIGN}"
# Models write a plus sign before a number, which JSON does not allow.
LEADING_PLUS = re.compile(r":\s*\+(?=[0-9.])")


class Answer(NamedTuple):
    """A parsed answer.

    Attributes:
        think: text inside the reasoning tags, stripped; None without reasoning.
        answer: text inside the answer tags, stripped; None without an answer.
        value: number under the answer key; None if the answer is unusable or no key is given.
        problem: why the answer is unusable, with the same wording for the same kind of fault; None if it is usable.
    """

    think: str | None
    answer: str | None
    value: float | None
    problem: str | None


def split_think(text: str) -> tuple[str | None, str, str | None]:
    """Split a text into (reasoning, the text after it, problem).

    A `</think>` without an opening tag ends reasoning that starts at the beginning of the text, since some chat
    templates put `<think>` into the prompt.
    """
    opening, closing = text.find("<think>"), text.find("</think>")
    if closing == -1:
        return (None, text, None) if opening == -1 else (None, "", "<think> is not closed")
    start = opening + len("<think>") if -1 < opening < closing else 0
    return text[start:closing].strip(), text[closing + len("</think>") :], None


def find_answer(text: str) -> tuple[str | None, str | None]:
    """Find the last complete `<answer>` block, the model's final answer; return (text inside it, problem)."""
    last_closing = text.rfind("</answer>")
    opening = text.rfind("<answer>", 0, max(last_closing, 0))
    if opening == -1:
        return None, "<answer> is not closed" if "<answer>" in text else "no <answer> block"
    start = opening + len("<answer>")
    return text[start : text.find("</answer>", start)].strip(), None


def strip_fence(text: str) -> str:
    """Remove the code fence (```json … ```, in small or capital letters) around a text."""
    if not (text.startswith("```") and text.endswith("```") and len(text) >= 6):
        return text
    inside = text[3:-3]
    return (inside[4:] if inside[:4].lower() == "json" else inside).strip()


def parse_value(text: str, key: str) -> tuple[float | None, str | None]:
    """Parse a JSON object and return (value of `key`, problem). The value must be a number, not a number in quotes."""
    plain = LEADING_PLUS.sub(": ", strip_fence(text).replace(MINUS, "-"))
    try:
        found: Any = json.loads(plain)
    except (ValueError, RecursionError):
        return None, "answer is not JSON"
    if not isinstance(found, dict):
        return None, "answer is not a JSON object"
    if key not in found:
        return None, f"answer has no {key}"
    value = found[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"{key} is not a number"
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    return (value, None) if math.isfinite(value) else (None, f"{key} is not finite")


def parse_answer(text: str, key: str | None) -> Answer:
    """Parse `<think>…</think><answer>{"key": value}</answer>`. The reasoning is optional, the answer is required.

    Tags inside the reasoning are ignored. If there are several answer blocks, the last complete one is parsed. Code
    fences around the JSON, a Unicode minus (U+2212) and a leading plus are accepted; a number in quotes, a boolean,
    NaN and infinity are not. The running time is linear in the length of the text.

    Args:
        text: the completion without the end of the turn.
        key: key of the number in the JSON object. With None, any text that is not blank is usable and `value` is None;
            the answer is then the text inside the answer block, or without a block all text after the reasoning.
    """
    if not text.strip():
        return Answer(None, None, None, "empty text")
    think, rest, think_problem = split_think(text)
    if key is None:
        block, _ = find_answer(rest)
        answer = rest.strip() if block is None else block
        if think_problem is None and not answer:
            think_problem = "no answer after the reasoning" if block is None else "<answer> is empty"
            return Answer(think, None, None, think_problem)
        return Answer(think, answer, None, think_problem)
    if think_problem:
        return Answer(None, None, None, think_problem)
    block, problem = find_answer(rest)
    if block is None:
        return Answer(think, None, None, problem)
    value, problem = parse_value(block, key)
    return Answer(think, block, value, problem)
