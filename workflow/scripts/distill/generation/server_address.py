"""The address of a server, checked before it stands in a command line, a log or a message."""

from typing import Any
from urllib.parse import urlsplit

from distill.common.errors import InputError, describe

SECRET_SIGNS = "@?#"  # of a user with a password, of a query, of a fragment


def find_address_problem(base_url: Any) -> str | None:
    """What is wrong with a server's base URL; None where it is right.

    One that may hold a secret is not shown.
    """
    expected = "expected an address as http://localhost:8000/v1"
    if isinstance(base_url, str) and any(sign in base_url for sign in SECRET_SIGNS):
        reason = "a key or password belongs into an environment variable (api_key_env)"
        return f"{expected}, found one with user, password, query or fragment (not shown): {reason}"
    try:
        parts = urlsplit(base_url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):  # a port that is no number, half an IPv6 address, no text
        is_right = False
    # urlsplit passes over line feeds and takes spaces.
    if is_right and base_url.isprintable() and " " not in base_url:
        return None
    return f"{expected}, found {describe(base_url)}"


def check_address(base_url: str) -> None:
    """Whether a base URL can be one.

    Raises:
        InputError: it cannot.
    """
    if problem := find_address_problem(base_url):
        raise InputError(f"base_url: {problem}")
