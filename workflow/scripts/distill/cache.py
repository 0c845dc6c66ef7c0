"""Teacher answers kept one by one, so that none is ever asked for twice.

A folder for each teacher (weights, adapter, template, settings), in it a file for each job that wrote: jobs on
several machines append side by side on a shared file system without locks.
"""

import json
import logging
import os
import socket
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distill.files import dump_json

log = logging.getLogger(__name__)


def read_cache(folder: Path) -> dict[str, dict[str, Any]]:
    """All answers in a folder by uid; the end of a line that a killed job did not finish is passed over."""
    answers: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            for raw in file:
                try:
                    record = json.loads(raw)
                except ValueError:
                    log.warning("%s: a torn line of %d bytes is passed over", path, len(raw))
                    continue
                answers.setdefault(record["uid"], record)
    return answers


class CacheWriter:
    """Appends answers to a file of this job's own; each `add` is on disk when it returns."""

    def __init__(self, folder: Path):
        self.path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "w", encoding="utf-8", newline="\n")
        return self

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append a batch of answers (each with its `uid`) and flush it to disk."""
        self.file.writelines(dump_json(record) + "\n" for record in records)
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()
