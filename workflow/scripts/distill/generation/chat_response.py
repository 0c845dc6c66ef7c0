"""Chat completions of a server: the answer, or what is wrong; the client library does not validate responses."""

import re
from itertools import islice
from typing import Any, NamedTuple

from openai.types.chat import ChatCompletionMessage

from distill.generation.server_errors import Problem
from distill.records.answer_format import CHANNEL_END, REASONING

# What servers call the end of a turn, and the maximum length; OpenAI's names are `stop` and `length`.
STOPPED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "completed")
CUT = ("length", "max_tokens", "max_length")
# In small letters; some servers add a detail.
REFUSED = ("content_filter", "safety", "prohibited_content", "recitation", "refusal", "tool_calls", "function_call")
FAILED = ("error", "abort", "insufficient_system_resource", None)


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
    message = getattr(choice, "message", None)
    if error := find_error(completion, choice, message):
        return BodyError(error)
    if not isinstance(message, ChatCompletionMessage):
        return Problem(f"expected a chat completion, found {completion!r}", is_server_fault=True, is_passing=True)
    if message.refusal:
        return Problem(f"refusal: {message.refusal!r}", is_refusal=True)
    reason = choice.finish_reason
    if reason not in (*STOPPED, *CUT):
        text = f"finish_reason: expected stop or length, found {reason!r}"
        is_refusal = str(reason).lower().startswith(REFUSED)
        return Problem(text, is_server_fault=reason in FAILED, is_passing=reason in FAILED, is_refusal=is_refusal)
    reason = "stop" if reason in STOPPED else "length"
    content = read_content(message.content)
    if isinstance(content, Problem):
        return content
    more = message.model_extra or {}
    reasoning = more.get("reasoning_content") or more.get("reasoning") or ""
    if not isinstance(reasoning, str):
        return Problem(f"choices[0].message.reasoning: expected text, found {reasoning!r}")
    if not content and not reasoning.strip() and not (content == "" and ends_at_once(completion, reason)):
        return describe_empty(content, reason)
    return Reply(join_reasoning(content or "", reasoning, reason), reason)


def find_error(*parts: Any) -> Any:
    """Return the error in a completion, its choice or its message; None without one.

    Some servers send an empty error beside every answer.
    """
    for part in parts:
        more = getattr(part, "model_extra", None) or {}
        error = more if getattr(part, "object", None) == "error" else more.get("error")
        is_empty = isinstance(error, dict) and not any(value for value in error.values() if value not in ("0", 200))
        if error and not is_empty:
            return error
    return None


def ends_at_once(completion: Any, reason: str) -> bool:
    """Return whether the server has counted one token, the end of the turn, so that the answer is empty indeed."""
    return reason == "stop" and getattr(getattr(completion, "usage", None), "completion_tokens", None) == 1


def describe_empty(content: str | None, reason: str) -> Problem:
    """Return what is wrong with a completion without text."""
    if reason == "length":
        text = "no text before the maximum length (max_new_tokens)"
        return Problem(f"choices[0].message.content: {text}", is_refusal=True, is_empty=True)
    text = "choices[0].message.content: expected text, found none"
    return Problem(
        text, is_server_fault=content is None, is_passing=True, is_refusal=content is not None, is_empty=True
    )


def read_content(content: Any) -> str | Problem | None:
    """Return the text of a message: a string, or the text of all its parts; None without any."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts)) or None
    return Problem(f"choices[0].message.content: expected text or a list of text parts, found {content!r}")


def join_reasoning(text: str, reasoning: str, finish_reason: str) -> str:
    """Return an answer with its reasoning in front of it, once, in `<think>` and `</think>`.

    Args:
        text: content of the message, which may have reasoning in tags of its own.
        reasoning: reasoning that the server has separated from it; empty if there is none.
        finish_reason: `stop` or `length`.
    """
    reasoning = strip_tags(reasoning)
    found = REASONING.match(text)
    if found and found["inside"].strip():
        inside, is_closed, rest = CHANNEL_END.sub("", found["inside"]), bool(found["end"]), text[found.end() :]
        return f"<think>{inside}</think>{rest}" if is_closed else f"<think>{inside}"
    if "</think>" in text and not (found and found["end"]):  # the server's chat template has written the opening tag
        return f"<think>\n{text}"
    if not reasoning.strip():
        return text
    rest = text[found.end() :] if found else drop_repeated(text, reasoning)
    # The answer was cut off in the middle of the reasoning, before its end tag.
    is_open = finish_reason == "length" and not rest
    return f"<think>{reasoning}" if is_open else f"<think>{reasoning}</think>{rest}"


def strip_tags(reasoning: str) -> str:
    """Return reasoning without tags around it; a closing tag inside it would end it too early."""
    if found := REASONING.match(reasoning):
        reasoning = found["inside"] + reasoning[found.end() :]
    return reasoning.removesuffix("</think>").replace("</think>", "</ think>")


def drop_repeated(text: str, reasoning: str) -> str:
    """Return a text without the reasoning that it repeats, without tags, on lines of its own before the answer."""
    words = reasoning.split()
    found = list(islice(re.finditer(r"\S+", text), len(words)))
    if [match[0] for match in found[:-1]] != words[:-1] or not (found and found[-1][0].startswith(words[-1])):
        return text
    rest = text[found[-1].start() + len(words[-1]) :]
    return rest if rest.strip() and re.match(r"[ \t]*\n|<", rest) else text
