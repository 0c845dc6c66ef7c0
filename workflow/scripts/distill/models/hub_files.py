"""Files of a model on a hub: how a hub lists and fetches them, and which of them are downloaded."""

import contextlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from distill.common.errors import InputError
from distill.models.fingerprint import DECIDING, WEIGHTS

WANTED = (*DECIDING, "README.md", "LICENSE*")
DUPLICATES = "consolidated*"  # the same weights in the format of Mistral's own code


@dataclass(frozen=True)
class RemoteFile:
    """A file on a hub.

    Attributes:
        name: path in the repository.
        size: bytes.
        digest: SHA-256 as 64 hexadecimal digits, or git's SHA-1 as 40; None if the hub has neither.
    """

    name: str
    size: int
    digest: str | None


class Hub(Protocol):
    """A client for one model on a hub."""

    @property
    def retryable(self) -> tuple[type[Exception], ...]:
        """Errors after which another attempt may succeed."""

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """List the model's files.

        Returns:
            The revision's commit, or the revision's name if the hub reports no commit; all files.

        Raises:
            InputError: the hub cannot be reached, or the model does not exist or is not accessible.
        """

    def fetch(self, file: RemoteFile, folder: Path) -> None:
        """Download a file into the folder; resume if part of it is on disk.

        Raises:
            InputError: further attempts would fail too, for example because access is denied.
        """

    def list_parts(self, file: RemoteFile, folder: Path) -> list[Path]:
        """List the files on disk that contain a remote file or parts of it."""


def count_bytes(hub: Hub, file: RemoteFile, folder: Path) -> int:
    """Count the bytes of a file that are on disk."""
    total = 0
    for path in hub.list_parts(file, folder):
        with contextlib.suppress(FileNotFoundError):  # another thread has just renamed it
            total += path.stat().st_size
    return min(total, file.size)


def choose_files(files: list[RemoteFile]) -> list[RemoteFile]:
    """Choose the files needed to load a model, with its model card and licence, sorted by name.

    Subfolders and GGUF files are left out, since repositories have many of them. Pickled weights are left out if there
    are safetensors.

    Raises:
        InputError: there are no weights that can be loaded.
    """

    def has_safetensors(chosen: list[RemoteFile]) -> bool:
        return any(file.name.endswith(".safetensors") for file in chosen)

    candidates = [file for file in files if "/" not in file.name and not file.name.endswith(".gguf")]
    chosen = [file for file in candidates if any(fnmatch(file.name, pattern) for pattern in WANTED)]
    if has_safetensors(chosen):
        chosen = [file for file in chosen if not file.name.endswith((".bin", ".bin.index.json"))]
    distinct = [file for file in chosen if not fnmatch(file.name, DUPLICATES)]
    if has_safetensors(distinct):
        chosen = distinct
    if not any(file.name.endswith(WEIGHTS) for file in chosen):
        names = ", ".join(sorted(file.name for file in files)[:8])
        raise InputError(f"expected weights (*.safetensors, pytorch_model*.bin), found {names or 'no file'}")
    return sorted(chosen, key=lambda file: file.name)


def describe_failure(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
