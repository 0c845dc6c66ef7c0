"""Read and write the workflow's files: atomic writes, and errors that name file and line."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from distill.common.errors import InputError, format_problem

BOM = b"\xef\xbb\xbf"
# Only writing to the file raises these; other OSErrors may come from the rest of the caller's block.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DuplicateKeyError(ValueError):
    """An object has a key more than once.

    Attributes:
        key: the key.
        values: its values, in their order.
    """

    def __init__(self, key: str, values: list[Any]):
        super().__init__(f"the key {key!r} more than once")
        self.key, self.values = key, values


def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these keys and values, of which the json module would keep the last of equal keys.

    Raises:
        DuplicateKeyError: a key comes more than once.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKeyError(key, [value for name, value in pairs if name == key])
    return found


def parse_json_line(raw: bytes, path: str | os.PathLike[str], line: int) -> dict[str, Any]:
    """Parse one line of a JSONL file.

    Raises:
        InputError: the line is not a JSON object in UTF-8, or has a key twice in an object; names file, line and key.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        expected = f"UTF-8 text (byte {error.start + 1} of the line is not)"
        raise InputError(format_problem(path, line, "line", expected, raw[error.start : error.start + 4])) from None
    try:
        record = json.loads(text, object_pairs_hook=build_object)
    except DuplicateKeyError as error:
        raise InputError(format_problem(path, line, error.key, "the key once in its object", error.values)) from None
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20].strip()
        expected = f"a JSON object ({error.msg} at column {error.colno})"
        raise InputError(format_problem(path, line, "line", expected, near)) from None
    except (ValueError, RecursionError) as error:  # an integer with thousands of digits, or deep nesting
        raise InputError(format_problem(path, line, "line", f"a JSON object ({error})", text[:60])) from None
    if not isinstance(record, dict):
        raise InputError(format_problem(path, line, "line", "a JSON object", record))
    return record


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, record) for each line of a JSONL file; blank lines are skipped.

    Only one line is in memory at a time.

    Raises:
        InputError: see `parse_json_line`.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(BOM)
            if raw.strip():
                yield number, parse_json_line(raw, path, number)


def remove_leftovers(target: Path) -> None:
    """Remove temporary files that killed jobs left beside a target. Only one job may write to a target at a time."""
    for path in [*target.parent.glob(f".{target.name}.*.tmp"), *target.parent.glob(f".{target.name}.*.old")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Write a text file atomically: `path` is replaced if the block succeeds and stays unchanged if it fails.

    The text goes to a temporary file in the same folder, which is then renamed.

    Raises:
        OSError: the file cannot be written; names the file, also if the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except OSError as error:
        if error.filename is None and error.errno in DISK_FULL:
            error.filename = str(target)
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replace_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block succeeds; if it fails, `path` stays unchanged."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    remove_leftovers(target)
    aside.mkdir()
    try:
        yield aside
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(aside, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def dump_json(record: Any) -> str:
    """Format a value as one line of JSON without line feed; Unicode stays readable.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> int:
    """Write records as JSONL atomically and return their number."""
    count = 0
    with write_atomically(path) as file:
        for record in records:
            file.write(dump_json(record) + "\n")
            count += 1
    return count


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write an indented JSON document atomically."""
    with write_atomically(path) as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False, indent=2)
        file.write("\n")


# What ends a line for `str.splitlines`, besides line feed and carriage return.
SEPARATORS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
ESCAPES = str.maketrans(
    {"\\": r"\\", "\n": r"\n", "\r": r"\r"} | {separator: f"\\u{ord(separator):04x}" for separator in SEPARATORS}
)
ESCAPED = re.compile(r"\\(?:([\\nr])|u([0-9a-fA-F]{4}))?")


def escape_line(text: str) -> str:
    r"""Escape a text to one line of a .source or .target file, also for readers that use `str.splitlines`.

    `\`, line feed and carriage return become `\\`, `\n` and `\r`; the other SEPARATORS become `\u` and four digits.
    """
    return text.translate(ESCAPES)


def unescape_line(line: str) -> str:
    r"""Undo `escape_line`.

    Raises:
        ValueError: a backslash is not followed by `\`, `n`, `r`, or `u` and four hexadecimal digits.
    """

    def restore(match: re.Match[str]) -> str:
        letter, code = match.groups()
        if letter:
            return {"\\": "\\", "n": "\n", "r": "\r"}[letter]
        if code:
            return chr(int(code, 16))
        raise ValueError(f"stray backslash at column {match.start() + 1}")

    return ESCAPED.sub(restore, line)
