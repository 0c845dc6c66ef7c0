"""Teacher answers kept one by one, so that none is ever asked for twice.

A folder for each teacher (weights, adapter, template, settings), in it a file for each job that wrote: jobs on
several machines append side by side on a shared file system without locks. `teacher.json` beside them says in words
which teacher it is.
"""

import errno
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distill.common.errors import InputError, describe
from distill.common.files import dump_json

logger = logging.getLogger(__name__)

DESCRIPTION = "teacher.json"
FIELDS = {"raw_output": str, "finish_reason": str, "generated_tokens": int}
SECONDS_BETWEEN_SYNCS = 1.0
NAMED_LINES = 5  # in a warning
REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space in your quota there",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
}

Key = tuple[str, int]


def parse_answer_line(raw: bytes) -> dict[str, Any] | None:
    """One kept answer; None where the line is torn or holds something else.

    The number of the sample and the prompt's tokens are 0 in lines that name none.
    """
    try:
        record = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("uid"), str):
        return None
    answer = {"uid": record["uid"], "sample": record.get("sample", 0)}
    answer |= {name: record.get(name) for name in FIELDS} | {"prompt_tokens": record.get("prompt_tokens", 0)}
    kinds = FIELDS | {"sample": int, "prompt_tokens": int}
    return answer if all(isinstance(answer[name], kind) for name, kind in kinds.items()) else None


def iterate_answers(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all answers in a folder, those of earlier jobs first; one that two jobs gave comes twice.

    A line that a killed job or a power cut left torn, or is being written right now, is passed over with a warning.
    """
    for path in sorted(folder.glob("*.jsonl")):
        torn = []
        try:
            with open(path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    answer = parse_answer_line(raw)
                    if answer is None:
                        torn.append(number)
                    else:
                        yield answer
        except FileNotFoundError:
            continue  # a job that answered nothing has just removed its own
        if torn:
            named = ", ".join(map(str, torn[:NAMED_LINES])) + (", …" if len(torn) > NAMED_LINES else "")
            logger.warning("%s: no whole answer in line %s: passed over", path, named)


class Answers(Mapping[Key, dict[str, Any]]):
    """Answers by (uid, sample), held as lines of UTF-8: as Python objects they would take twice the memory."""

    def __init__(self) -> None:
        self.lines: dict[Key, bytes] = {}

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return json.loads(self.lines[key])

    def __iter__(self) -> Iterator[Key]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, key: object) -> bool:
        return key in self.lines

    def add(self, record: dict[str, Any]) -> None:
        """Take an answer, unless the same one is there."""
        self.lines.setdefault((record["uid"], record["sample"]), encode_answer(record))


def encode_answer(record: dict[str, Any]) -> bytes:
    """An answer as a line, without its line feed; half a surrogate pair, which a server may send, becomes `?`."""
    return dump_json(record).encode("utf-8", "replace")


def read_cache(folder: Path, uids: Container[str] | None = None) -> Answers:
    """Answers in a folder by (uid, sample); the first one wins where two jobs answered the same.

    Args:
        uids: of the prompts whose answers are wanted; None for all.
    """
    answers = Answers()
    for answer in iterate_answers(folder):
        if uids is None or answer["uid"] in uids:
            answers.add(answer)
    return answers


class CacheWriter:
    """Appends answers to a file of this job's own.

    Each answer is with the operating system when `add` returns, and outlives this process. It is forced to the disk
    (fsync) when the last time is a second or more ago, and at the end: answers that come one by one do not wait for
    the disk each, and a power cut costs those since the last time.

    Args:
        folder: of this teacher.
        description: what `teacher.json` is to say of it, where it is not there yet.

    Raises:
        InputError: an answer cannot be written (disk full); says how many are kept, and where.
    """

    def __init__(self, folder: Path, description: dict[str, Any] | None = None):
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")  # so that names sort by age
        name = f"{now}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.path, self.description = folder / f"{name}.jsonl", description
        self.written = self.synced = self.size = 0
        self.last_sync = -SECONDS_BETWEEN_SYNCS

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.write_description()
            self.file = open(self.path, "wb", buffering=0)
        except OSError as error:
            raise self.explain(error, 0) from error
        return self

    def write_description(self) -> None:
        """Write `teacher.json` unless it is there; whole, whoever else writes it at the same time."""
        target = self.path.with_name(DESCRIPTION)
        if self.description is None or target.exists():
            return
        aside = self.path.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps(self.description, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append answers, each with its `uid` and `sample`.

        Raises:
            ValueError: one that `read_cache` would pass over, and that would be asked for again and again.
        """
        for record in records:
            line = encode_answer(record)
            if parse_answer_line(line) is None:
                raise ValueError(f"expected an answer that can be read back, found {describe(record, 300)}")
            self.append(line + b"\n")
        if self.written > self.synced and time.monotonic() - self.last_sync >= SECONDS_BETWEEN_SYNCS:
            self.sync()

    def append(self, line: bytes) -> None:
        """Write one line; a part of it that a full disk took is removed again."""
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.remove_torn_line()
            raise self.explain(error, self.written) from error
        self.written += 1
        self.size += len(line)

    def remove_torn_line(self) -> None:
        """Cut the file back to its last whole line; where that fails, readers pass the torn one over."""
        try:
            self.file.truncate(self.size)
        except OSError as error:
            logger.warning("%s: a torn last line stays: %s", self.path, error.strerror)

    def sync(self) -> None:
        """Force what was written to the disk."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            # What a disk or a server takes in late it may also refuse late.
            raise self.explain(error, self.synced) from error
        self.synced, self.last_sync = self.written, time.monotonic()

    def explain(self, error: OSError, kept: int) -> InputError:
        """What happened, what is kept, and how to go on."""
        place = f"{kept} of this job's answers are kept in {self.path}" if kept else f"{self.path} holds no answer yet"
        remedy = REMEDIES.get(error.errno or 0, "mend that")
        text = f"{self.path.parent}: a teacher answer cannot be kept: {error.strerror}"
        return InputError(f"{text}\n{place}; {remedy} and give the same command: it goes on from there")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.synced < self.written:
                self.sync()
        except InputError as failure:
            if kind is None:
                raise
            logger.warning("%s", failure)
        finally:
            self.file.close()
            if not self.written:
                self.path.unlink(missing_ok=True)
