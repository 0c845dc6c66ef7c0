"""Errors that a person can mend, and how a script ends on one."""

import logging
import sys
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

MOST_SHOWN = 20


class InputError(Exception):
    """Bad input or configuration. Its text is for people and is shown without a traceback."""


def describe(found: Any, limit: int = 60) -> str:
    """The value as it is shown in a message: its repr, cut to `limit` characters."""
    return cut(repr(found), limit)


def cut(text: str, limit: int) -> str:
    """The text, or as much of its beginning as `limit` characters hold with a mark of the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_problem(path: str | PathLike[str], line: int | str, field: str, expected: str, found: Any) -> str:
    """One problem as `file:line: field: expected …, found …`; `line` may be another place, `record 3`."""
    return f"{path}:{line}: {field}: expected {expected}, found {describe(found)}"


def raise_problems(problems: Iterable[str], what: str = "input") -> None:
    """Raise one InputError that lists all problems (the first MOST_SHOWN in full); nothing where there is none."""
    problems = list(problems)
    if not problems:
        return
    shown = "\n".join(f"  {problem}" for problem in problems[:MOST_SHOWN])
    more = len(problems) - MOST_SHOWN
    tail = f"\n  … and {more} more" if more > 0 else ""
    raise InputError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the {what}:\n{shown}{tail}")


def start_logging() -> None:
    """Log lines with their time to standard error."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: log lines to standard error.

    An InputError, or an OSError that names a file (not there, not allowed, disk full), ends it with its text alone
    and exit code 1; anything else is a fault of the program and shows where.
    """
    start_logging()
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
