"""Errors of a server with the OpenAI API, in words that say what to change and never show the key."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from openai import APIConnectionError, APIStatusError, APITimeoutError

from distill.common.errors import cut

PASSING = (408, 409, 425, 429)  # status codes that another attempt may not get, besides 5xx
REFUSING = (400, 413, 414, 422, 431, 451)  # status codes that are about the request itself
OUT_OF_CREDIT = 402
# Status codes of the words that servers put in place of a code into a body; any other word may pass.
STATUS_OF_WORD = {
    "content_filter": 400,
    "content_policy_violation": 400,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_hard_limit_reached": OUT_OF_CREDIT,
    "insufficient_balance": OUT_OF_CREDIT,
    "insufficient_quota": OUT_OF_CREDIT,
    "invalid_api_key": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
}


class Problem(NamedTuple):
    """Why a request has no answer.

    Attributes:
        text: the reason.
        is_fatal: every other request would fail too, for example because the key is rejected.
        is_server_fault: the cause is probably the server and not the request.
        is_passing: the response says that another attempt may succeed.
        is_refusal: the server answers other requests but not this one, for example because of a content filter.
        is_empty: the response is a completion without an error, but has no text.
        status: HTTP status code of a fatal problem; None if there is none.
    """

    text: str
    is_fatal: bool = False
    is_server_fault: bool = False
    is_passing: bool = False
    is_refusal: bool = False
    is_empty: bool = False
    status: int | None = None


class ErrorReader:
    """Turns a server's errors into problems.

    Args:
        base_url: address of the server.
        key: the API key, which no message shows; empty without one.
        api_key_env: environment variable of the key.
        timeout: maximum time to wait for one answer, in seconds.
    """

    def __init__(self, base_url: str, key: str, api_key_env: str, timeout: float):
        self.key, self.api_key_env, self.timeout = key, api_key_env, timeout
        self.proxy = find_proxy(base_url)

    def redact(self, text: str, limit: int = 300) -> str:
        """Return a server's text for a message: the key is removed first, then the text is cut."""
        for key in (repr(self.key)[1:-1], self.key) if self.key else ():
            text = text.replace(key, "***")
        return cut(text, limit)

    def read_exception(self, error: Exception) -> Problem:
        """Return an exception of the client library as a problem."""
        if isinstance(error, APITimeoutError):
            cause = type(error.__cause__).__name__
            text = f"no answer in time ({cause}; the timeout is {self.timeout:g} s){self.proxy}"
            return Problem(text, is_server_fault=True)
        if isinstance(error, APIConnectionError):
            cause = f"{type(error.__cause__).__name__}: {self.redact(str(error.__cause__))}"
            return Problem(f"no connection ({cause}){self.proxy}", is_server_fault=True)
        if isinstance(error, APIStatusError):
            body = error.body
            words = (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else body
            if words is None:  # the body is no JSON, as that of a proxy
                words = error.response.text
            status = error.status_code
            if isinstance(body, dict) and find_status(body) == OUT_OF_CREDIT:
                status = OUT_OF_CREDIT
            elif is_moderation(body):
                status = REFUSING[0]
            # The client library has repeated the request.
            return self.read_status(status, words, f"status {error.status_code}")._replace(is_passing=False)
        return Problem(f"no chat completion ({type(error).__name__}: {self.redact(str(error))})", is_server_fault=True)

    def read_body_error(self, error: Any) -> Problem:
        """Return the field `error` of a response with status 200 as a problem."""
        error = error if isinstance(error, dict) else {"message": error}
        name = next((error[name] for name in ("code", "type") if error.get(name)), None)
        text = "error in the body" if name is None else self.redact(f"error {name} in the body", 60)
        status = REFUSING[0] if is_moderation(error) else find_status(error) or 500
        return self.read_status(status, error.get("message") or error, text)

    def read_status(self, status: int, words: Any, name: str) -> Problem:
        """Return an error with an HTTP status code as a problem.

        Args:
            status: the code, also if the response itself had another one.
            words: what the server says.
            name: name of the error for the message.
        """
        text = f"{name}: {self.redact(repr(words))}{self.proxy}"
        if status in (401, 403):
            state = "has another value" if self.key else "is not set"
            expected = f"expected a valid key in the environment variable {self.api_key_env}, which {state}"
            return Problem(f"{text}; the server rejects the key: {expected}", is_fatal=True, status=status)
        if status in (404, OUT_OF_CREDIT):  # 404: a wrong address or model
            return Problem(text, is_fatal=True, status=status)
        if status >= 500 or status in PASSING:
            return Problem(text, is_server_fault=True, is_passing=True)
        return Problem(text, is_refusal=status in REFUSING)


def find_status(error: Mapping[str, Any]) -> int | None:
    """Return the status code that an error's `code` or `type` stands for; None if neither is known."""
    for name in (str(error.get("code")), str(error.get("type"))):
        if found := STATUS_OF_WORD.get(name) or (int(name) if name.isdecimal() and len(name) < 4 else None):
            return found
    return None


def is_moderation(error: Any) -> bool:
    """Return whether an error says that a filter has found something in the request."""
    more = error.get("metadata") if isinstance(error, dict) else None
    return isinstance(more, dict) and bool(more.get("flagged_input") or more.get("reasons"))


def find_proxy(base_url: str) -> str:
    """Return a remark for messages that names the proxy of requests to an address; empty without a proxy.

    The client library takes proxies from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in capital or small letters.
    """
    parts, proxies = urlsplit(base_url), getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)
    if kind is None or proxy_bypass(parts.netloc):
        return ""
    place = proxies[kind].rpartition("://")[2].rpartition("@")[2]  # without user and password
    return f" (through the proxy {place} of {kind.upper()}_PROXY; NO_PROXY={parts.hostname} bypasses it)"
