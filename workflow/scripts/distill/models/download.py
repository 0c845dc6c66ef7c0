"""Downloading a model: the files that matter, several at a time, resumed, checked, and written down in a manifest."""

import contextlib
import fcntl
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from distill.common.errors import InputError
from distill.common.files import write_json
from distill.common.journal import Journal, read_journal
from distill.models.fingerprint import DECIDING, WEIGHTS, list_model_files
from distill.models.hub_names import MANIFEST

logger = logging.getLogger(__name__)

WANTED = (*DECIDING, "README.md", "LICENSE*")
ATTEMPTS = 5  # at a file, without a byte more of it or with a wrong one
LONGEST_PAUSE = 60.0  # seconds
BLOCK = 2**22  # bytes
SECONDS_BETWEEN_LINES = 15.0
CHECKED = ".checked.jsonl"
LOCK = ".lock"
AGAIN = "consolidated*"  # the same weights once more, as Mistral's own program reads them


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it; `digest` is its SHA-256, or git's SHA-1 of it where the hub has no other."""

    name: str
    size: int
    digest: str | None


class Hub(Protocol):
    """What files a model has, and how one of them gets to disk."""

    @property
    def passing(self) -> tuple[type[Exception], ...]:
        """Errors after which it is worth trying again."""

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """The revision's commit, or its name where the hub tells none, and all files; an InputError says why not."""

    def fetch(self, file: RemoteFile, folder: Path) -> None:
        """Bring a file into the folder, going on from what is there of it; an InputError where that is in vain."""

    def list_parts(self, file: RemoteFile, folder: Path) -> list[Path]:
        """What is on disk of a file, whole or not."""


def count_bytes(hub: Hub, file: RemoteFile, folder: Path) -> int:
    """Bytes of a file that are on disk, whole or not."""
    total = 0
    for path in hub.list_parts(file, folder):
        with contextlib.suppress(FileNotFoundError):  # it has just been renamed
            total += path.stat().st_size
    return min(total, file.size)


def choose_files(files: list[RemoteFile]) -> list[RemoteFile]:
    """Those that a model is loaded from, and its card and licence; no GGUF (a page has many of them), no subfolders.

    Where there are safetensors, pickled weights are left out.

    Raises:
        InputError: there are no weights that can be loaded.
    """
    at_hand = [file for file in files if "/" not in file.name and not file.name.endswith(".gguf")]
    found = [file for file in at_hand if any(fnmatch(file.name, pattern) for pattern in WANTED)]
    has_safetensors = any(file.name.endswith(".safetensors") for file in found)
    if has_safetensors:
        found = [file for file in found if not file.name.endswith((".bin", ".bin.index.json"))]
    once = [file for file in found if not fnmatch(file.name, AGAIN)]
    if any(file.name.endswith(".safetensors") for file in once):
        found = once
    if not any(file.name.endswith(WEIGHTS) for file in found):
        names = ", ".join(sorted(file.name for file in files)[:8])
        raise InputError(f"expected weights (*.safetensors, pytorch_model*.bin), found {names or 'no file'}")
    return sorted(found, key=lambda file: file.name)


def hash_file(path: Path, digest: str | None) -> tuple[str, str]:
    """(SHA-256 of a file, its digest of the kind that is expected)."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    is_git = digest is not None and len(digest) == 40
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            if is_git:
                git.update(block)
    return sha256.hexdigest(), git.hexdigest() if is_git else sha256.hexdigest()


def parse_checked(record: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return a file's name and record from the journal of checked files; None if it is incomplete."""
    return (record["name"], record) if {"name", "sha256"} <= record.keys() else None


class Checked:
    """Which files were found right, so that a resumed download does not read 100 GB again; by size and time."""

    def __init__(self, folder: Path):
        self.folder, self.path, self.lock = folder, folder / CHECKED, threading.Lock()
        self.known: dict[str, dict[str, Any]] = dict(read_journal(self.path, parse_checked, "a checked file"))

    def stamp(self, file: RemoteFile) -> dict[str, Any]:
        """What must be as it was."""
        status = (self.folder / file.name).stat()
        return {"name": file.name, "size": status.st_size, "time": status.st_mtime_ns, "digest": file.digest}

    def find(self, file: RemoteFile) -> str | None:
        """SHA-256 of a file that is there and was found right; None where it must be looked at."""
        if file.name not in self.known or not (self.folder / file.name).is_file():
            return None
        record = self.known[file.name]
        return record["sha256"] if self.stamp(file).items() <= record.items() else None

    def add(self, file: RemoteFile, sha256: str) -> None:
        """Remember a file that was found right."""
        with self.lock, Journal(self.path) as journal:
            journal.append([self.stamp(file) | {"sha256": sha256}])


def check_file(file: RemoteFile, path: Path) -> tuple[str, str | None]:
    """(SHA-256, what is wrong with the file on disk: None for nothing)."""
    size = path.stat().st_size
    if size != file.size:
        return "", f"expected {file.size} bytes, found {size}"
    sha256, found = hash_file(path, file.digest)
    if file.digest and found != file.digest:
        return sha256, f"expected checksum {file.digest}, found {found}"
    return sha256, None


def pauses() -> Iterator[float]:
    """Seconds between attempts: 1, 2, 4, … up to a minute."""
    pause = 1.0
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def bring(hub: Hub, file: RemoteFile, folder: Path, checked: Checked) -> str:
    """Download a file until it is right; returns its SHA-256.

    A lost connection is tried again from the bytes that are there, as long as each attempt brings some; a file that is
    not what the hub says is fetched anew.

    Raises:
        InputError: it stays wrong, or out of reach.
    """
    path, left, pause, problem = folder / file.name, ATTEMPTS, pauses(), ""
    if sha256 := checked.find(file):
        return sha256
    if path.is_file():  # whole, and not noted yet when a job was killed
        sha256, wrong = check_file(file, path)
        if wrong is None:
            checked.add(file, sha256)
            return sha256
    while left:
        before = count_bytes(hub, file, folder)
        try:
            hub.fetch(file, folder)
        except InputError as error:
            raise InputError(f"{file.name}: {error}") from error
        except hub.passing as error:
            problem = describe_failure(error)
            has_grown = count_bytes(hub, file, folder) > before
            left = ATTEMPTS if has_grown else left - 1
        else:
            sha256, wrong = check_file(file, path)
            if wrong is None:
                checked.add(file, sha256)
                return sha256
            problem, left = wrong, left - 1
            for part in hub.list_parts(file, folder):
                part.unlink()
        if left:
            wait = next(pause)
            logger.warning("%s: %s; trying again in %.0f s", file.name, problem, wait)
            time.sleep(wait)
    raise InputError(f"{file.name}: {problem}; given up after {ATTEMPTS} attempts, the same command goes on from there")


def describe_failure(error: BaseException) -> str:
    """The first line of what a client says, with the kind of error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def check_space(files: list[RemoteFile], hub: Hub, folder: Path) -> None:
    """Say before what does not fit the disk.

    Raises:
        InputError: less is free than is to be downloaded.
    """
    needed = sum(max(0, file.size - count_bytes(hub, file, folder)) for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: expected {needed / 1e9:.1f} GB free on its disk, found {free / 1e9:.1f} GB")


class Ticker:
    """Says in the log how far a download is, every some seconds, from what is on disk."""

    def __init__(self, files: list[RemoteFile], hub: Hub, folder: Path):
        self.total = sum(file.size for file in files)
        self.count = lambda: sum(count_bytes(hub, file, folder) for file in files)
        self.first, self.started, self.done = self.count(), time.monotonic(), threading.Event()

    def __enter__(self) -> "Ticker":
        logger.info("%.2f GB to have, %.2f GB of them on disk", self.total / 1e9, self.first / 1e9)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def run(self) -> None:
        """Until the end."""
        while not self.done.wait(SECONDS_BETWEEN_LINES):
            self.say()

    def say(self) -> None:
        """One line."""
        count = self.count()
        speed = (count - self.first) / max(time.monotonic() - self.started, 1e-9)
        left = f", about {(self.total - count) / speed / 60:.0f} min left" if speed and count < self.total else ""
        share = count / self.total if self.total else 1.0
        text = "%.2f of %.2f GB (%.0f %%), %.1f MB/s%s"
        logger.info(text, count / 1e9, self.total / 1e9, 100 * share, speed / 1e6, left)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()
        self.say()


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Alone in the folder: the job of a killed Snakemake may still be at it, and both would write to one part."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process downloads to %s: waiting for its end", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_others(files: list[RemoteFile], folder: Path) -> None:
    """Remove weights, configurations, tokenizer and template that another revision left: they would be loaded, too."""
    for path in list_model_files(folder):
        if path.name not in {file.name for file in files}:
            logger.warning("%s: not a file of this revision: removed", path)
            path.unlink()


def download(source: str, hub: Hub, folder: Path, workers: int) -> None:
    """Bring a model's files into a folder, check them, and write its manifest last.

    Args:
        source: as configured, for the manifest.
        workers: files at a time.

    Raises:
        InputError: the model is not to be had, does not fit the disk, or a file stays wrong; files that are right stay.
    """
    with lock_folder(folder):
        download_alone(source, hub, folder, workers)


def download_alone(source: str, hub: Hub, folder: Path, workers: int) -> None:
    """`download`, once no other process is at it."""
    try:
        commit, listed = hub.list_files()
        files = choose_files(listed)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if list_model_files(folder) and not (folder / CHECKED).exists():
        found = "found other files in it; move them away, or name the folder where it should be used as it is"
        raise InputError(f"{source}: {folder}: expected a new folder, or one of an earlier download, {found}")
    (folder / CHECKED).touch()
    check_space(files, hub, folder)
    checked, digests, problems = Checked(folder), {}, []
    with Ticker(files, hub, folder), ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(bring, hub, file, folder, checked): file for file in files}
        for job in as_completed(jobs):
            file = jobs[job]
            try:
                digests[file.name] = job.result()
                logger.info("%s: %.2f GB, right", file.name, file.size / 1e9)
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise InputError(f"{source}: " + "\n".join(sorted(problems)))
    remove_others(files, folder)
    entries = [{"name": file.name, "size": file.size, "sha256": digests[file.name]} for file in files]
    write_json(folder / MANIFEST, {"source": source, "commit": commit, "files": entries})
