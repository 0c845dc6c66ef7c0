"""Splits that are read from disk at each pass, so that their records need no memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.records.splits import stream_split

Record = dict[str, Any]


class Records(Protocol):
    """Records that can be iterated several times: a list, a `SplitReader` or several of these."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Record]: ...


class SplitReader:
    """The records of a split on disk, see `read_split`. They are checked at once.

    Args:
        folder: folder with the splits.
        name: `train`, `val` or `test`.

    Attributes:
        path: the .jsonl file.
        digest: digest of the records, see `digest_records`.

    Raises:
        InputError: a file is malformed, or the three files differ; names file and line. While iterating also: the
            file has changed since.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = Path(folder), name
        self.path = self.folder / f"{name}.jsonl"
        digest = hashlib.sha256()
        self.count = 0
        self.state = read_state(self.path)
        for record in stream_split(self.folder, name):
            digest.update(digest_of(record).encode())
            self.count += 1
        self.digest = digest.hexdigest()[:32]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Record]:
        yield from stream_split(self.folder, self.name)
        state = read_state(self.path)
        if state != self.state:  # its time alone, or its content
            if SplitReader(self.folder, self.name).digest != self.digest:
                raise InputError(
                    f"{self.path}: expected the same records during the whole job, found that they were replaced"
                )
            self.state = state


class JoinedRecords:
    """Several sets of records, one after another.

    Args:
        parts: the sets.
    """

    def __init__(self, *parts: Records):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self.parts)


def read_state(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced or written to: its size and time of modification."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def digest_records(records: Records | Iterable[Record]) -> str:
    """Hash the contents of records and their order to 32 hexadecimal digits; of a `SplitReader`, from its one pass."""
    if isinstance(records, SplitReader):
        return records.digest
    if isinstance(records, JoinedRecords):
        return join_digests([digest_records(part) for part in records.parts])
    digest = hashlib.sha256()
    for record in records:
        digest.update(digest_of(record).encode())
    return digest.hexdigest()[:32]


def join_digests(digests: Sequence[str]) -> str:
    """The digest of several sets of records; of one set its own."""
    return digests[0] if len(digests) == 1 else digest_of(list(digests))


def list_sources(records: Records | Iterable[Record]) -> list[Path]:
    """The files that records are read from; none for records in memory."""
    if isinstance(records, JoinedRecords):
        return [path for part in records.parts for path in list_sources(part)]
    return [records.path.absolute()] if isinstance(records, SplitReader) else []
