"""Errors that users can fix, and how a script reports them."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any

from distill.common.allocator import set_allocator
from distill.common.progress_file import announce_job
from distill.common.threads import set_threads

MOST_SHOWN = 20  # problems listed in one error


class InputError(Exception):
    """Bad input or configuration. The message is written for users and shown without a traceback."""


def describe(found: Any, limit: int = 60) -> str:
    """Format a value for a message: its repr, cut to `limit` characters."""
    return cut(repr(found), limit)


def cut(text: str, limit: int) -> str:
    """Cut a text to `limit` characters, the last of which is then `…`; shorter texts are returned unchanged."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_problem(path: str | PathLike[str], line: int | str, field: str, expected: str, found: Any) -> str:
    """Format a problem as `file:line: field: expected …, found …`.

    Args:
        path: file that contains the problem.
        line: line number from 1, or another position such as `record 3`.
        field: name of the field.
        expected: what the field should contain.
        found: what the field contains.
    """
    return f"{path}:{line}: {field}: expected {expected}, found {describe(found)}"


def format_problems(problems: Sequence[str], what: str = "input") -> str:
    """Format problems as one message, which lists the first MOST_SHOWN of them."""
    shown = "\n".join(f"  {problem}" for problem in problems[:MOST_SHOWN])
    more = len(problems) - MOST_SHOWN
    tail = f"\n  … and {more} more" if more > 0 else ""
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the {what}:\n{shown}{tail}"


def raise_problems(problems: Iterable[str], what: str = "input") -> None:
    """Raise one InputError for all problems, of which the first MOST_SHOWN are listed; do nothing if there are none.

    Raises:
        InputError: there is at least one problem.
    """
    problems = list(problems)
    if problems:
        raise InputError(format_problems(problems, what))


def start_logging() -> None:
    """Log to standard error, each line with its time."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function with logging to standard error, and with torch's allocator and threads set.

    An InputError ends the script with its message and exit code 1. So does an OSError that names a file (missing file,
    no permission, full disk). Any other exception is a bug and keeps its traceback.
    """
    start_logging()
    set_allocator()
    set_threads()
    try:
        with announce_job():
            main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
