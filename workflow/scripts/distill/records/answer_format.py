"""Parse a model's answer: the reasoning, the answer block, the JSON object inside it, and the value of one key."""

import json
import math
import re
from typing import Any, NamedTuple

from distill.common.files import DuplicateKeyError, build_object

MINUS = "\N{MINUS SIGN}"
# Models write a plus sign before a number, which JSON does not allow.
LEADING_PLUS = re.compile(r":\s*\+(?=[0-9.])")


# Reasoning at the beginning of a text, by its tags: those of XML, Mistral's, and the channels of gpt-oss.
REASONING = re.compile(
    r"\s*(?:<(?P<tag>think|thinking|thought|reasoning|seed:think)>|(?P<mark>\[THINK\])"
    r"|<\|channel\|>analysis<\|message\|>)(?P<inside>.*?)"
    r"(?P<end>(?(tag)</(?P=tag)>|(?(mark)\[/THINK\]|<\|channel\|>final<\|message\|>))|\Z)",
    re.DOTALL,
)
CHANNEL_END = re.compile(r"<\|end\|>(?:<\|start\|>assistant)?\s*\Z")
FENCE = re.compile(r"```[ \t]*[A-Za-z0-9]*\s?(.*)```", re.DOTALL)


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

    Reasoning at the beginning may have other tags than `<think>`, see `REASONING`.

    A `</think>` without an opening tag ends reasoning that starts at the beginning of the text, since some chat
    templates put `<think>` into the prompt.
    """
    if (found := REASONING.match(text)) and found["tag"] != "think":
        inside = CHANNEL_END.sub("", found["inside"]).strip()
        return (inside, text[found.end() :], None) if found["end"] else (None, "", "the reasoning is not closed")
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
    """Remove the code fence (```json … ```, with any name of a language) around a text."""
    found = FENCE.fullmatch(text)
    return found[1].strip() if found else text


def parse_value(text: str, key: str) -> tuple[float | None, str | None]:
    """Parse a JSON object and return (value of `key`, problem). The value must be a number, not a number in quotes."""
    plain = LEADING_PLUS.sub(": ", strip_fence(text).replace(MINUS, "-"))
    try:
        found: Any = json.loads(plain, object_pairs_hook=build_object)
    except DuplicateKeyError as error:
        return None, f"answer has {error.key} twice"
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
