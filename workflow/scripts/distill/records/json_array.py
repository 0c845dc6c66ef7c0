"""Read the elements of a JSON array from a file that may be larger than memory.

The json module parses each element, as it does each line of JSONL, so that both shapes give the same values and errors.
ijson was not kept: it reads lone surrogates as question marks, and an integer of 5,000 digits crashes the process.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distill.common.errors import InputError, format_problem
from distill.common.files import DuplicateKeyError, build_object

BLOCK = 1 << 18  # characters
DECODER = json.JSONDecoder(object_pairs_hook=build_object)
SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_CUT = 16  # characters of the longest token, except strings and numbers, that the end of the window may cut


class Window:
    """The part of a text file that is being parsed.

    Args:
        file: the file, opened as text.
    """

    def __init__(self, file: IO[str]):
        self.file, self.text, self.position = file, "", 0

    def read_more(self) -> bool:
        """Drop what has been parsed and add a block, at least as much as there is; return whether there was one."""
        rest = self.text[self.position :]
        block = self.file.read(max(BLOCK, len(rest)))
        self.text, self.position = rest + block, 0
        return bool(block)

    def take(self, marks: str) -> str:
        """Skip white space and take one character.

        Raises:
            ValueError: it is none of `marks`, or the file ends.
        """
        found = self.peek()
        if not found or found not in marks:
            raise ValueError(f"{' or '.join(marks)} is missing")
        self.position += 1
        return found

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end of the file."""
        while True:
            self.position = SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]  # always matches
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.read_more():
                return ""

    def parse(self) -> Any:
        """Skip white space and parse a value.

        Raises:
            ValueError: it is not JSON, or an object has a key twice.
            RecursionError: it is nested too deeply.
        """
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if not self.is_cut(error) or not self.read_more():
                    raise ValueError(error.msg) from None  # without the error's position, which is that in the window
                continue
            if end < len(self.text) or not self.read_more():  # at the end of the window, a number may go on
                self.position = end
                return value

    def is_cut(self, error: json.JSONDecodeError) -> bool:
        """Return whether the cause of an error may be that the window ends in the middle of the value."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_CUT


def read_array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (`record N` from 1, element) for each element of a JSON array; one element at a time is in memory.

    Raises:
        InputError: the file is not a JSON array in UTF-8, or has a key twice in an object; names file and record.
    """
    number = 1
    # Bytes that are not UTF-8 become lone surrogates, so that `check_writable` names the record.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        window = Window(file)
        try:
            window.take("[")
            mark = "," if window.peek() != "]" else window.take("]")
            while mark == ",":
                yield f"record {number}", window.parse()
                number += 1
                mark = window.take(",]")
            if extra := window.peek():
                raise ValueError(f"{extra} after the end of the array")
        except DuplicateKeyError as error:
            expected = "the key once in its object"
            raise InputError(format_problem(path, f"record {number}", error.key, expected, error.values)) from None
        except (ValueError, RecursionError) as error:
            near = window.text[window.position : window.position + 60]
            expected = f"a JSON array in UTF-8 ({error})"
            raise InputError(format_problem(path, f"record {number}", "record", expected, near)) from None
