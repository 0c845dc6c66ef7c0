"""Show a text again and again until Ctrl-C: on a terminal in place, otherwise one after the other."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from distill.common.errors import InputError

DEFAULT_SECONDS = 10.0
OPTION = "--watch"
HOME, CLEAR_LINE, CLEAR_BELOW = "\033[H", "\033[K", "\033[J"
CUT_LINES, WRAP_LINES = "\033[?7l", "\033[?7h"  # a wrapped line would move the lines below it


def take_watch(arguments: Sequence[str]) -> tuple[list[str], float | None]:
    """Take the option `--watch [SECONDS]` out of a command line.

    Returns:
        The other arguments, and the seconds between two looks; None without the option.

    Raises:
        InputError: the number is not positive.
    """
    others, seconds, rest = [], None, list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name != OPTION:
            others.append(name + equals + value)
            continue
        if not equals and rest and is_number(rest[0]):
            equals, value = "=", rest.pop(0)
        if equals and not (is_number(value) and float(value) > 0):
            raise InputError(f"{OPTION}: expected a positive number of seconds, found {value!r}")
        seconds = float(value) if equals else DEFAULT_SECONDS
    return others, seconds


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return float(text) - float(text) == 0
    except ValueError:
        return False


def fit(text: str, lines: int) -> str:
    """Cut a text to a number of lines, the last of which then tells how many are left out."""
    found = text.splitlines()
    if len(found) <= lines:
        return text
    kept = found[: max(lines - 1, 0)]
    return "\n".join([*kept, f"… {len(found) - len(kept)} more lines"])


def redraw(text: str, lines: int) -> str:
    """Return what replaces the text on a terminal of this height, without flicker."""
    shown = "".join(f"{line}{CLEAR_LINE}\n" for line in fit(text, lines - 1).splitlines())
    return f"{HOME}{CUT_LINES}{shown}{WRAP_LINES}{CLEAR_BELOW}"


def watch(render: Callable[[], str], seconds: float, stop: Callable[[float], None] = time.sleep) -> None:
    """Show a text every few seconds until Ctrl-C.

    Args:
        render: makes the text. Its first InputError is raised; later ones are shown, since files may change meanwhile.
        seconds: between two looks.
        stop: waits for that time.
    """
    is_terminal, has_shown = sys.stdout.isatty(), False
    try:
        while True:
            try:
                text = render()
            except InputError as error:
                if not has_shown:
                    raise
                text = f"error: {error}"
            text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}, every {seconds:g} s until Ctrl-C\n{text}"
            if is_terminal:
                start = "" if has_shown else HOME + CLEAR_BELOW
                sys.stdout.write(start + redraw(text, os.get_terminal_size(sys.stdout.fileno()).lines))
            else:
                sys.stdout.write(text + "\n\n")
            sys.stdout.flush()
            has_shown = True
            stop(seconds)
    except KeyboardInterrupt:
        print()
