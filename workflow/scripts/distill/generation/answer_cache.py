"""The answer cache: every teacher answer is stored as soon as it is generated, so that a rerun resumes from there.

Each teacher (weights, adapter, chat template, settings) has a folder, and each job that writes has a journal of its own
in it. Jobs on several machines can therefore append at the same time on a shared file system, without locks.
`teacher.json` describes the teacher.
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
from distill.common.journal import Journal, decode_record, encode_record, read_journal
from distill.generation.sampling import drop_cut_character

logger = logging.getLogger(__name__)

DESCRIPTION = "teacher.json"
FIELDS = {"raw_output": str, "finish_reason": str, "generated_tokens": int}
SECONDS_BETWEEN_SYNCS = 1.0
REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space in your quota there",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
}

Key = tuple[str, int]


def parse_answer_record(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return a stored answer; None if a field is missing or has another type.

    Records of older versions lack the sample number and the prompt's tokens, which are then 0. Their texts may end with
    a cut character, which is left out. They may be empty although not a token was generated, after an error of a server
    that was taken for an answer.
    """
    answer = {"uid": record.get("uid"), "sample": record.get("sample", 0)}
    answer |= {name: record.get(name) for name in FIELDS} | {"prompt_tokens": record.get("prompt_tokens", 0)}
    types = {"uid": str, "sample": int, **FIELDS, "prompt_tokens": int}
    if not all(isinstance(answer[name], kind) for name, kind in types.items()):
        return None
    if not answer["raw_output"] and not answer["generated_tokens"]:
        return None
    return answer | {"raw_output": drop_cut_character(answer["raw_output"], answer["finish_reason"])}


def iterate_answers(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all answers in a folder, those of earlier jobs first; an answer that two jobs generated comes twice."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from read_journal(path, parse_answer_record, "an answer")


class Answers(Mapping[Key, dict[str, Any]]):
    """Answers by (uid, sample), held as encoded lines: as Python objects they would take twice the memory."""

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
        """Add an answer unless there is one for this uid and sample."""
        self.lines.setdefault((record["uid"], record["sample"]), encode_record(record))


def read_cache(folder: Path, uids: Container[str] | None = None) -> Answers:
    """Return the answers in a folder by (uid, sample); if two jobs generated the same one, the first wins.

    Args:
        folder: the teacher's folder; it may be missing.
        uids: prompts whose answers are wanted; None for all.
    """
    answers = Answers()
    for answer in iterate_answers(folder):
        if uids is None or answer["uid"] in uids:
            answers.add(answer)
    return answers


class CacheWriter:
    """Appends answers to a journal of this job's own.

    An answer survives a kill of the process as soon as `add` returns. Answers are forced to disk (fsync) at most once
    a second, so that they do not wait for the disk one by one; a power cut costs those since the last time.

    Args:
        folder: the teacher's folder.
        description: what to write to `teacher.json` if it does not exist.

    Raises:
        InputError: an answer cannot be written, for example because the disk is full; says how many are stored where.
    """

    def __init__(self, folder: Path, description: dict[str, Any] | None = None):
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")  # names sort by age
        name = f"{now}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.path, self.description = folder / f"{name}.jsonl", description
        self.last_sync = -SECONDS_BETWEEN_SYNCS

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.write_description()
            self.journal = Journal(self.path)
        except OSError as error:
            raise self.explain(error, 0) from error
        return self

    def write_description(self) -> None:
        """Write `teacher.json` unless it exists. Several jobs may write it at the same time; each writes it whole."""
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
            ValueError: `read_cache` would skip the answer, so that every run would generate it again.
        """
        for record in records:
            line = encode_record(record)
            if parse_answer_record(decode_record(line) or {}) is None:
                raise ValueError(f"expected an answer that can be read back, found {describe(record, 300)}")
            try:
                self.journal.write(line)
            except OSError as error:
                self.journal.remove_torn_line()
                raise self.explain(error, self.journal.written) from error
        if time.monotonic() - self.last_sync >= SECONDS_BETWEEN_SYNCS:
            self.sync()

    def sync(self) -> None:
        """Force the answers to disk."""
        if self.journal.synced == self.journal.written:
            return
        try:
            self.journal.sync()
        except OSError as error:
            # A disk or a file server may accept data first and refuse it later.
            raise self.explain(error, self.journal.synced) from error
        self.last_sync = time.monotonic()

    def explain(self, error: OSError, stored: int) -> InputError:
        """Return an error that says what failed, what is stored, and how to resume."""
        place = (
            f"{stored} of this job's answers are stored in {self.path}" if stored else f"{self.path} has no answer yet"
        )
        remedy = REMEDIES.get(error.errno or 0, "fix the problem above")
        text = f"{self.path.parent}: cannot store a teacher answer: {error.strerror}"
        return InputError(f"{text}\n{place}; {remedy} and rerun the same command to resume")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
        except InputError as failure:
            if kind is None:
                raise
            logger.warning("%s", failure)  # the first error is the one to report
        finally:
            self.journal.file.close()
            if not self.journal.written:
                self.path.unlink(missing_ok=True)
