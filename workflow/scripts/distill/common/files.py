"""Reading and writing the workflow's files: whole or not at all, and with errors that name file and line."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from distill.common.errors import InputError, format_problem

BOM = b"\xef\xbb\xbf"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what only writing meets, and no other OSError of the caller's block


def parse_json_line(raw: bytes, path: str | os.PathLike[str], line: int) -> dict[str, Any]:
    """One line of a JSONL file as a dict.

    Raises:
        InputError: the line is not UTF-8, not JSON, or not an object; names file and line.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        expected = f"UTF-8 text (byte {error.start + 1} of the line is not)"
        raise InputError(format_problem(path, line, "line", expected, raw[error.start : error.start + 4])) from None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20].strip()
        expected = f"a JSON object ({error.msg} at column {error.colno})"
        raise InputError(format_problem(path, line, "line", expected, near)) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or endless nesting
        raise InputError(format_problem(path, line, "line", f"a JSON object ({error})", text[:60])) from None
    if not isinstance(record, dict):
        raise InputError(format_problem(path, line, "line", "a JSON object", record))
    return record


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, record) of a JSONL file, one line in memory at a time; blank lines are passed over.

    Raises:
        InputError: a line is not a JSON object in UTF-8; names file and line.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(BOM)
            if raw.strip():
                yield number, parse_json_line(raw, path, number)


def remove_leftovers(target: Path) -> None:
    """Remove what killed jobs left beside a target; Snakemake runs one job for it at a time."""
    for path in [*target.parent.glob(f".{target.name}.*.tmp"), *target.parent.glob(f".{target.name}.*.old")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Open a text file beside `path` that takes its name when the block ends well and is removed when it does not.

    Raises:
        OSError: it cannot be written; names a file, too, where it is the disk that is full.
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
        if error.filename is None and error.errno in FULL:
            error.filename = str(target)
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replace_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well and is removed otherwise."""
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
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def dump_json(record: Any) -> str:
    """One JSON line (without line feed) in which Unicode stays readable; NaN and infinity are refused."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> int:
    """Write records as JSONL, atomically; returns how many."""
    count = 0
    with write_atomically(path) as file:
        for record in records:
            file.write(dump_json(record) + "\n")
            count += 1
    return count


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with write_atomically(path) as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False, indent=2)
        file.write("\n")


def escape_line(text: str) -> str:
    r"""Text as one line of a .source or .target file: `\`, line feed and carriage return become `\\`, `\n`, `\r`."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def unescape_line(line: str) -> str:
    r"""The inverse of `escape_line`.

    Raises:
        ValueError: a backslash that no `escape_line` writes.
    """
    plain = {"\\": "\\", "n": "\n", "r": "\r"}
    parts, position = [], 0
    while (found := line.find("\\", position)) != -1:
        following = line[found + 1 : found + 2]
        if following not in plain:
            raise ValueError(f"stray backslash at column {found + 1}")
        parts += [line[position:found], plain[following]]
        position = found + 2
    return "".join([*parts, line[position:]])
