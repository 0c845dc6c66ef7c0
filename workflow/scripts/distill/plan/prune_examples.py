"""The tokenized examples that jobs share: which are of current records, and removal of the others."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from distill.common.disk import format_bytes, measure_folder
from distill.models.example_folders import (
    EXAMPLES,
    INDEX,
    DamagedError,
    is_current,
    list_folders,
    list_leftovers,
    read_facts,
)


@dataclass(frozen=True)
class ExampleFolder:
    """A folder of the cache.

    Attributes:
        path: the folder.
        bytes: size of all files.
        text: what it holds, in words.
        is_current: whether a job can use it.
    """

    path: Path
    bytes: int
    text: str
    is_current: bool

    def __str__(self) -> str:
        return f"{self.path.name}: {self.text}"


def list_examples(cache: Path) -> list[ExampleFolder]:
    """Return the folders of a cache. What a job killed on this machine has left, or a damaged one, is not current."""
    found, digests = [], dict[Path, str | None]()
    for path in [*list_folders(cache), *list_leftovers(cache)]:
        size = measure_folder(path)
        try:
            facts = read_facts(path)
            current = not path.name.startswith(".") and is_current(path, facts, digests)
            paths = [os.path.normpath(cache / source) for source in facts["sources"]]
            sources = " and ".join(paths) or "records in memory"
            last = datetime.fromtimestamp((path / INDEX).stat().st_mtime)
            state = "" if current else "; of other records or software than the current"
            text = f"{facts['counts']['kept']:,} examples of {sources}, {format_bytes(size)}, last used "
            found.append(ExampleFolder(path, size, f"{text}{last:%Y-%m-%d %H:%M}{state}", current))
        except (DamagedError, KeyError):
            found.append(ExampleFolder(path, size, f"incomplete, {format_bytes(size)}", False))
    return found


def format_examples(folders: Iterable[ExampleFolder]) -> str:
    """Format the totals of several folders.

    >>> format_examples([])
    'tokenized examples: 0 folders, 0 B'
    """
    found = list(folders)
    number = f"{len(found)} folder{'' if len(found) == 1 else 's'}"
    return f"tokenized examples: {number}, {format_bytes(sum(one.bytes for one in found))}"


def describe_examples(directories: Iterable[Path]) -> str:
    """Describe the tokenized examples of working directories; empty without any."""
    parts = []
    for directory in directories:
        folders = list_examples(directory / EXAMPLES)
        parts += [f"{(directory / EXAMPLES).resolve()}: {format_examples(folders)}", *map(str, folders)] * bool(folders)
    return "\n".join(parts)


def prune_examples(directories: Iterable[Path], is_confirmed: bool) -> str:
    """Remove examples that no job can use; without confirmation, only list them. Empty if there are none."""
    found = [one for directory in directories for one in list_examples(directory / EXAMPLES)]
    unused = [one for one in found if not one.is_current]
    if not unused:
        return ""
    if is_confirmed:
        for one in unused:
            shutil.rmtree(one.path)
    end = "removed" if is_confirmed else "would be removed: pass --yes to remove them"
    return "\n".join([*(f"{one.path.parent}/{one}" for one in unused), f"{format_examples(unused)} {end}"])
