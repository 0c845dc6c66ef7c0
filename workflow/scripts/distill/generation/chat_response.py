"""Chat completions of a server: the answer, or what is wrong; the client library does not validate responses."""

from typing import Any, NamedTuple

from openai.types.chat import ChatCompletionMessage

PASSING = (408, 409, 425, 429)  # status codes that another attempt may not get, besides 5xx


class Problem(NamedTuple):
    """Why a request has no answer.

    Attributes:
        text: the reason.
        is_fatal: every other request would fail too, for example because the key is rejected.
        is_server_fault: the cause is probably the server and not the request.
        is_passing: the response says that another attempt may succeed.
    """

    text: str
    is_fatal: bool = False
    is_server_fault: bool = False
    is_passing: bool = False


class Reply(NamedTuple):
    """What a completion contains.

    Attributes:
        text: the answer, with the reasoning in front of it.
        finish_reason: `stop` or `length`.
    """

    text: str
    finish_reason: str


def read_reply(completion: Any) -> Reply | Problem:
    """Return the reply in a completion, or what is wrong with it.

    Some servers answer with status 200 and an error in the body, or with a message without text. Neither is an answer.

    Args:
        completion: the client library's object, whose fields may have any type.
    """
    if error := read_error(completion):
        return error
    choices = getattr(completion, "choices", None)
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if not isinstance(message, ChatCompletionMessage):
        return Problem(f"expected a chat completion, found {completion!r}", is_server_fault=True, is_passing=True)
    if choice.finish_reason not in ("stop", "length"):
        return Problem(f"finish_reason: expected stop or length, found {choice.finish_reason!r}")
    if message.refusal:
        return Problem(f"refusal: {message.refusal!r}")
    content = read_content(message.content)
    if isinstance(content, Problem):
        return content
    more = message.model_extra or {}
    reasoning = more.get("reasoning_content") or more.get("reasoning")
    if content is None and not reasoning:
        found = "expected text, found none"
        return Problem(f"choices[0].message.content: {found}", is_server_fault=True, is_passing=True)
    return Reply(add_reasoning(content or "", reasoning, choice.finish_reason), choice.finish_reason)


def read_error(completion: Any) -> Problem | None:
    """Return the error in the body of a response with status 200; None if there is none."""
    error = (getattr(completion, "model_extra", None) or {}).get("error")
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    words = (error.get("message") if isinstance(error, dict) else None) or error
    try:
        status = int(str(code))
    except ValueError:
        status = 500  # a word such as `overloaded`, or nothing
    is_passing = status >= 500 or status in PASSING
    return Problem(f"error {code} in the body: {words!r}", is_server_fault=is_passing, is_passing=is_passing)


def read_content(content: Any) -> str | Problem | None:
    """Return the text of a message: a string, or the text of all its parts."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    return Problem(f"choices[0].message.content: expected text or a list of text parts, found {content!r}")


def add_reasoning(text: str, reasoning: Any, finish_reason: str) -> str:
    """Put reasoning that the server has separated from the answer back in front of it, unless it is there already."""
    if reasoning:
        before, closing, _ = text.partition("</think>")
        is_there = ("<think>" in text or closing) and str(reasoning).strip() in before
        if not is_there:
            # The answer was cut off in the middle of the reasoning, before its end tag.
            is_open = finish_reason == "length" and not text
            text = f"<think>{reasoning}" if is_open else f"<think>{reasoning}</think>{text}"
    if "</think>" in text and "<think>" not in text:  # the server's chat template has written the opening tag
        text = f"<think>\n{text}"
    return text
