"""Chat completions of a server: the answer, or what is wrong; the client library does not validate responses."""

import re
from itertools import islice
from typing import Any, NamedTuple

from openai.types.chat import ChatCompletionMessage

from distill.generation.server_errors import Problem


class BodyError(NamedTuple):
    """A response with status 200 whose body is an error; `error` has the code and the words of the server."""

    error: Any


class Reply(NamedTuple):
    """What a completion contains.

    Attributes:
        text: the answer, with the reasoning in front of it.
        finish_reason: `stop` or `length`.
    """

    text: str
    finish_reason: str


def read_reply(completion: Any) -> Reply | BodyError | Problem:
    """Return the reply in a completion, or what is wrong with it.

    Some servers answer with status 200 and an error in the body, or with a message without text. Neither is an answer.

    Args:
        completion: the client library's object, whose fields may have any type.
    """
    choices = getattr(completion, "choices", None)
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    for part in (completion, choice):
        if error := (getattr(part, "model_extra", None) or {}).get("error"):
            return BodyError(error)
    if not isinstance(message := getattr(choice, "message", None), ChatCompletionMessage):
        return Problem(f"expected a chat completion, found {completion!r}", is_server_fault=True, is_passing=True)
    if message.refusal:
        return Problem(f"refusal: {message.refusal!r}", is_refusal=True)
    reason = choice.finish_reason
    if reason not in ("stop", "length"):
        flags = {"is_refusal": True} if reason == "content_filter" else {"is_server_fault": reason == "error"}
        text = f"finish_reason: expected stop or length, found {reason!r}"
        return Problem(text, **flags, is_passing=reason == "error")
    content = read_content(message.content)
    if isinstance(content, Problem):
        return content
    more = message.model_extra or {}
    reasoning = more.get("reasoning_content") or more.get("reasoning")
    if not isinstance(reasoning, str | None):
        return Problem(f"choices[0].message.reasoning: expected text, found {reasoning!r}")
    if not content and not reasoning and (content is None or not has_tokens(completion)):
        if reason == "length":
            text = "no text before the maximum length (max_new_tokens)"
            return Problem(f"choices[0].message.content: {text}", is_refusal=True, is_empty=True)
        text = "choices[0].message.content: expected text, found none"
        return Problem(text, is_server_fault=True, is_passing=True, is_empty=True)
    return Reply(add_reasoning(content or "", reasoning or "", reason), reason)


def has_tokens(completion: Any) -> bool:
    """Return whether the server has counted generated tokens; an answer that ends at once has one."""
    return bool(getattr(getattr(completion, "usage", None), "completion_tokens", None))


def read_content(content: Any) -> str | Problem | None:
    """Return the text of a message: a string, or the text of all its parts; None without any."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts)) or None
    return Problem(f"choices[0].message.content: expected text or a list of text parts, found {content!r}")


def add_reasoning(text: str, reasoning: str, finish_reason: str) -> str:
    """Put reasoning that the server has separated from the answer back in front of it, unless it is there already.

    It may be there with its tags or without, and with other white space.
    """
    words = reasoning.split()
    before, closing, _ = text.partition("</think>")
    if words and (closing or "<think>" in text):
        is_there = " ".join(words) in " ".join(before.split())
    else:
        rest = find_rest(text, words)
        is_there = bool(rest.strip())
        text = f"<think>{reasoning}</think>{rest}" if is_there else text
    if words and not is_there:
        # The answer was cut off in the middle of the reasoning, before its end tag.
        is_open = finish_reason == "length" and not text
        text = f"<think>{reasoning}" if is_open else f"<think>{reasoning}</think>{text}"
    if "</think>" in text and "<think>" not in text:  # the server's chat template has written the opening tag
        text = f"<think>\n{text}"
    return text


def find_rest(text: str, words: list[str]) -> str:
    """Return what follows the words at the beginning of a text; empty if it begins otherwise."""
    found = list(islice(re.finditer(r"\S+", text), len(words)))
    if not words or [match[0] for match in found[:-1]] != words[:-1] or not found[-1][0].startswith(words[-1]):
        return ""
    rest = text[found[-1].start() + len(words[-1]) :]
    return rest if re.match(r"\s|<", rest) else ""
