"""Checks of a server's address, before it appears in a command line, a log or a message."""

from typing import Any
from urllib.parse import urlsplit

from distill.common.errors import InputError, describe

SECRET_SIGNS = "@?#"  # they begin the host after a user and password, a query, and a fragment


def find_address_problem(base_url: Any) -> str | None:
    """Return what is wrong with a server's base URL; None if it is valid.

    An address that may contain a secret is not shown.
    """
    expected = "expected an address like http://localhost:8000/v1"
    if isinstance(base_url, str) and any(sign in base_url for sign in SECRET_SIGNS):
        reason = "put a key or password in an environment variable (api_key_env)"
        return f"{expected}, found one with user, password, query or fragment (not shown): {reason}"
    try:
        parts = urlsplit(base_url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):  # the port is no number, an IPv6 address is incomplete, or no text
        is_valid = False
    # urlsplit ignores line feeds and accepts spaces.
    if is_valid and base_url.isprintable() and " " not in base_url:
        return None
    return f"{expected}, found {describe(base_url)}"


def check_address(base_url: str) -> None:
    """Check a base URL.

    Raises:
        InputError: it is not a valid http or https address.
    """
    if problem := find_address_problem(base_url):
        raise InputError(f"base_url: {problem}")
