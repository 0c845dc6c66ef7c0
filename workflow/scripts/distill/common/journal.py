"""Journals: JSON Lines files that a job appends to as it works, so that a rerun resumes where it was stopped.

A kill or a power cut costs at most the records since the last `sync`, and leaves at most one torn line, which readers
skip.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from distill.common.files import dump_json

logger = logging.getLogger(__name__)

MOST_LINES = 5  # line numbers in a warning

Parsed = TypeVar("Parsed")


def encode_record(record: dict[str, Any]) -> bytes:
    """Encode a record as one line without line feed; half a surrogate pair, which UTF-8 cannot encode, becomes `?`."""
    return dump_json(record).encode("utf-8", "replace")


def decode_record(line: bytes) -> dict[str, Any] | None:
    """Decode one line; None if it is torn or not a JSON object."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_journal(path: Path, parse: Callable[[dict[str, Any]], Parsed | None], what: str) -> Iterator[Parsed]:
    """Yield the records of a journal in the order they were written; nothing if there is no file.

    Torn lines, and lines being written at this moment, are skipped with one warning that names the file and the lines.

    Args:
        path: the file.
        parse: takes a record and returns what to yield; None skips the line.
        what: what a line holds, for the warning.
    """
    skipped = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                record = decode_record(line)
                parsed = None if record is None else parse(record)
                if parsed is None:
                    skipped.append(number)
                else:
                    yield parsed
    except FileNotFoundError:
        return
    if skipped:
        listed = ", ".join(map(str, skipped[:MOST_LINES])) + (", …" if len(skipped) > MOST_LINES else "")
        logger.warning("%s: line %s: expected %s, found a torn or different line; skipped", path, listed, what)


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError, which writing to an open file leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


class Journal:
    """Appends records to a file, one JSON line each.

    `write` hands a line to the operating system, so it survives a kill of this process; `sync` forces it to disk, so
    it survives a power cut. Several processes may append to the same file.

    Attributes:
        written: lines written so far.
        synced: lines forced to disk so far.

    Args:
        path: the file; its folder is created. A torn last line is ended first.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.written, self.synced = path, 0, 0
        self.file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed in __exit__)
        self.size = os.fstat(self.file.fileno()).st_size
        if self.size and os.pread(self.file.fileno(), 1, self.size - 1) != b"\n":
            self.size += self.file.write(b"\n")

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records; they are on disk when this returns."""
        for record in records:
            self.write(encode_record(record))
        self.sync()

    def write(self, line: bytes) -> None:
        """Write one line, given without its line feed.

        Raises:
            OSError: the disk is full, for example; names the file. Part of the line may be written.
        """
        rest = memoryview(line + b"\n")
        with name_file(self.path):
            while rest:
                rest = rest[self.file.write(rest) :]
        self.written += 1
        self.size += len(line) + 1

    def remove_torn_line(self) -> None:
        """Remove what a failed `write` left. Only for a file that no other process writes to."""
        try:
            self.file.truncate(self.size)
        except OSError as error:
            logger.warning("%s: the last line stays torn: %s", self.path, error.strerror)

    def sync(self) -> None:
        """Force what was written to disk.

        Raises:
            OSError: the disk refuses it only now; names the file.
        """
        if self.synced < self.written:
            with name_file(self.path):
                os.fsync(self.file.fileno())
            self.synced = self.written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
