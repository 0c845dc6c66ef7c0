"""Reading a model's answer: the reasoning, the answer block, the JSON inside it, and the value of one key."""

import json
import math
import re
from typing import Any, NamedTuple

MINUS = "\N{MINUS SIGN}"


# A plus sign before a number is no JSON, yet models write it.
LEADING_PLUS = re.compile(r":\s*\+(?=[0-9.])")


class Answer(NamedTuple):
    """What a text holds; the answer is usable where `problem` is None.

    `think` and `answer` are the texts inside their tags, stripped (None where there is no such block); `value` is the
    number that the key holds; `problem` is a short reason, the same for the same kind of fault, fit for counting.
    """

    think: str | None
    answer: str | None
    value: float | None
    problem: str | None


def split_think(text: str) -> tuple[str | None, str, str | None]:
    """(reasoning, rest after it, problem). A `</think>` without its opening tag closes a block from the start on,
    since some chat templates put `<think>` into the prompt.
    """
    opening, closing = text.find("<think>"), text.find("</think>")
    if closing == -1:
        return (None, text, None) if opening == -1 else (None, "", "<think> is not closed")
    start = opening + len("<think>") if -1 < opening < closing else 0
    return text[start:closing].strip(), text[closing + len("</think>") :], None


def find_answer(text: str) -> tuple[str | None, str | None]:
    """(inside of the last complete `<answer>` block, problem). The last one is the model's final word."""
    last_closing = text.rfind("</answer>")
    opening = text.rfind("<answer>", 0, max(last_closing, 0))
    if opening == -1:
        return None, "<answer> is not closed" if "<answer>" in text else "no <answer> block"
    start = opening + len("<answer>")
    return text[start : text.find("</answer>", start)].strip(), None


def strip_fence(text: str) -> str:
    """The text without the code fence (```json … ```) around it."""
    if not (text.startswith("```") and text.endswith("```") and len(text) >= 6):
        return text
    return text[3:-3].removeprefix("json").strip()


def parse_value(text: str, key: str) -> tuple[float | None, str | None]:
    """(value of `key` in a JSON object, problem). A number in quotes is refused: the format asks for a number."""
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
    """Parse `<think>…</think><answer>{"key": value}</answer>`; the reasoning may be missing, the answer may not.

    Tags inside the reasoning do not count. Of several answer blocks the last complete one does. Code fences around
    the JSON, a Unicode minus (U+2212) and a leading plus are tolerated; a number in quotes, a boolean, NaN and
    infinity are not. Runs in time linear in the text.

    Args:
        text: the completion, special tokens removed.
        key: what the JSON object must hold; None accepts every text that is not blank, and `value` stays None. The
            answer is then the inside of the answer block, or all that follows the reasoning where there is none.
    """
    if not text.strip():
        return Answer(None, None, None, "empty text")
    think, rest, think_problem = split_think(text)
    if key is None:
        block, _ = find_answer(rest)
        return Answer(think, block if block is not None else rest.strip(), None, None)
    if think_problem:
        return Answer(None, None, None, think_problem)
    block, problem = find_answer(rest)
    if block is None:
        return Answer(think, None, None, problem)
    value, problem = parse_value(block, key)
    return Answer(think, block, value, problem)
