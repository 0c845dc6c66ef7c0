"""Checksums of downloaded files, and a journal of the files already checked."""

import hashlib
import threading
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import git_hash

from distill.common.journal import Journal, read_journal
from distill.models.hub_files import RemoteFile

CHECKED = ".checked.jsonl"
GIT_DIGITS = 40  # hexadecimal digits of git's SHA-1


def find_difference(file: RemoteFile, path: Path) -> tuple[str, str | None]:
    """Compare the size and checksum of a file on disk with the hub's.

    Returns:
        SHA-256 of the file on disk, empty if the sizes differ; the difference, None if there is none.
    """
    size = path.stat().st_size
    if size != file.size:
        return "", f"expected {file.size} bytes, found {size}"
    with open(path, "rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if not file.digest:
        return sha256, None
    # Files with git's SHA-1 are not in large file storage, so they are small.
    found = git_hash(path.read_bytes()) if len(file.digest) == GIT_DIGITS else sha256
    return sha256, None if found == file.digest else f"expected checksum {file.digest}, found {found}"


def parse_checked(record: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return a file's name and record from the journal of checked files; None if it is incomplete."""
    return (record["name"], record) if {"name", "sha256"} <= record.keys() else None


class CheckedFiles:
    """Journal of the correct files in a folder, so that a resumed download need not hash them again.

    A file is checked again if its size or modification time has changed.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, self.lock = folder, folder / CHECKED, threading.Lock()
        self.known: dict[str, dict[str, Any]] = dict(read_journal(self.path, parse_checked, "a checked file"))

    def describe_state(self, file: RemoteFile) -> dict[str, Any]:
        """Return what identifies the state of a file on disk."""
        status = (self.folder / file.name).stat()
        return {"name": file.name, "size": status.st_size, "time": status.st_mtime_ns, "digest": file.digest}

    def find(self, file: RemoteFile) -> str | None:
        """Return the SHA-256 of a file if it is on disk and correct; hash it if it has not been checked."""
        path = self.folder / file.name
        if not path.is_file():
            return None
        record = self.known.get(file.name)
        if record and self.describe_state(file).items() <= record.items():
            return str(record["sha256"])
        sha256, difference = find_difference(file, path)
        if difference:
            return None
        self.add(file, sha256)
        return sha256

    def add(self, file: RemoteFile, sha256: str) -> None:
        """Record a correct file."""
        with self.lock, Journal(self.path) as journal:
            journal.append([self.describe_state(file) | {"sha256": sha256}])
