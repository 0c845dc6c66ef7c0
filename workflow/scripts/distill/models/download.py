"""Download the files of a model or a dataset: several at a time, resumed after interruptions, checked, and listed."""

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from distill.common.disk import check_free
from distill.common.downloads import MANIFEST
from distill.common.errors import InputError
from distill.common.files import write_json
from distill.common.progress import Pace, format_left
from distill.models.checked_files import CHECKED, CheckedFiles, find_difference
from distill.models.fingerprint import list_model_files
from distill.models.hub_files import Hub, RemoteFile, choose_files, count_bytes, describe_failure

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # attempts in a row without progress
WAIT = wait_exponential(multiplier=1, max=60)  # seconds between attempts: 1, 2, 4, … 60
SECONDS_BETWEEN_LINES = 15.0
LOCK = ".lock"


class CorruptFileError(Exception):
    """A downloaded file whose size or checksum differs from the hub's."""


class StopWithoutProgress:
    """Stop retrying after a number of failed attempts in a row that left no more bytes on disk than before.

    Args:
        attempts: number of attempts.
        count: counts the bytes on disk.
    """

    def __init__(self, attempts: int, count: Callable[[], int]):
        self.attempts = self.left = attempts
        self.count, self.before = count, count()

    def __call__(self, state: RetryCallState) -> bool:
        """Whether to stop after a failed attempt."""
        now = self.count()
        self.left = self.attempts if now > self.before else self.left - 1
        self.before = now
        return self.left == 0


def fetch_once(hub: Hub, file: RemoteFile, folder: Path, checked: CheckedFiles) -> str:
    """Attempt to download a file; return its SHA-256.

    Raises:
        CorruptFileError: size or checksum are wrong; the file is removed, so that the next attempt restarts.
    """
    hub.fetch(file, folder)
    sha256, difference = find_difference(file, folder / file.name)
    if difference:
        for part in hub.list_parts(file, folder):
            part.unlink()
        raise CorruptFileError(difference)
    checked.add(file, sha256)
    return sha256


def describe_attempt(error: BaseException) -> str:
    """Describe why an attempt failed."""
    return str(error) if isinstance(error, CorruptFileError) else describe_failure(error)


def log_retry(file: RemoteFile, state: RetryCallState) -> None:
    """Log a failed attempt before the next one."""
    error = state.outcome and state.outcome.exception()
    if error:
        logger.warning("%s: %s; retrying in %.0f s", file.name, describe_attempt(error), state.upcoming_sleep)


def download_file(hub: Hub, file: RemoteFile, folder: Path, checked: CheckedFiles) -> str:
    """Download a file, unless it is on disk and correct; return its SHA-256.

    After a lost connection the download resumes; after a wrong size or checksum it restarts.

    Raises:
        InputError: the hub denies access, or ATTEMPTS attempts in a row made no progress.
    """
    if sha256 := checked.find(file):
        return sha256
    temporary: tuple[type[Exception], ...] = (CorruptFileError, *hub.retryable)
    retrying = Retrying(
        retry=retry_if_exception_type(temporary),
        wait=WAIT,
        stop=StopWithoutProgress(ATTEMPTS, lambda: count_bytes(hub, file, folder)),
        before_sleep=partial(log_retry, file),
        reraise=True,
    )
    try:
        return retrying(fetch_once, hub, file, folder, checked)
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from error
    except temporary as error:
        text = f"{file.name}: {describe_attempt(error)}"
        raise InputError(f"{text}; gave up after {ATTEMPTS} attempts without progress, rerun to resume") from error


class ProgressLog:
    """Log the progress of a download every 15 seconds, as measured on disk."""

    def __init__(self, files: list[RemoteFile], hub: Hub, folder: Path):
        self.total = sum(file.size for file in files)
        self.count = lambda: sum(count_bytes(hub, file, folder) for file in files)
        self.first, self.started, self.done = self.count(), time.monotonic(), threading.Event()
        self.pace = Pace(self.total - self.first, self.started)

    def __enter__(self) -> "ProgressLog":
        logger.info("%.2f GB to download, %.2f GB of it on disk already", self.total / 1e9, self.first / 1e9)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def run(self) -> None:
        """Log lines until the download ends."""
        while not self.done.wait(SECONDS_BETWEEN_LINES):
            self.log()

    def log(self) -> None:
        """Log one line: size, share, speed and remaining time."""
        count = self.count()
        speed = (count - self.first) / max(time.monotonic() - self.started, 1e-9)
        self.pace.note(count - self.first, time.monotonic())
        left = format_left(self.pace.estimate()) if count < self.total else ""
        share = count / self.total if self.total else 1.0
        text = "%.2f of %.2f GB (%.0f %%), %.1f MB/s%s"
        logger.info(text, count / 1e9, self.total / 1e9, 100 * share, speed / 1e6, left)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()
        self.log()


def download_files(
    source: str, hub: Hub, files: list[RemoteFile], folder: Path, workers: int, checked: CheckedFiles
) -> dict[str, str]:
    """Download files, `workers` at a time; return their SHA-256 by name.

    Raises:
        InputError: some files cannot be downloaded; the others are kept.
    """
    digests, problems = {}, []
    with ProgressLog(files, hub, folder), ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(download_file, hub, file, folder, checked): file for file in files}
        for job in as_completed(jobs):
            file = jobs[job]
            try:
                digests[file.name] = job.result()
                logger.info("%s: complete (%.2f GB)", file.name, file.size / 1e9)
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise InputError(f"{source}: " + "\n".join(sorted(problems)))
    return digests


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder and lock it; wait if another process holds the lock.

    A job can survive the Snakemake process that started it; the next run's job would then write to the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process downloads to %s; waiting for it to finish", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_folder(source: str, folder: Path) -> None:
    """Check that a folder contains no model files other than an earlier download.

    Raises:
        InputError: it contains other model files.
    """
    if list_model_files(folder) and not (folder / CHECKED).exists():
        advice = "move them away, or name the folder as the model to use them"
        raise InputError(
            f"{source}: {folder}: expected a new folder or an earlier download, found other files; {advice}"
        )


def check_space(files: list[RemoteFile], hub: Hub, folder: Path) -> None:
    """Check that the files fit on the disk.

    Raises:
        InputError: less space is free than is to be downloaded.
    """
    needed = sum(max(0, file.size - count_bytes(hub, file, folder)) for file in files)
    check_free({folder: needed}, "the download")


def remove_others(files: list[RemoteFile], folder: Path) -> None:
    """Remove model files that belong to another revision, since loading the model would read them too."""
    for path in list_model_files(folder):
        if path.name not in {file.name for file in files}:
            logger.warning("%s: removed, since it is not a file of this revision", path)
            path.unlink()


def list_files(source: str, hub: Hub) -> tuple[str, list[RemoteFile]]:
    """Return the commit and the files of a model or dataset.

    Raises:
        InputError: it is not available; names it.
    """
    try:
        return hub.list_files()
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def write_manifest(
    source: str, commit: str, files: list[RemoteFile], digests: Mapping[str, str], folder: Path, **more: Any
) -> None:
    """Write the manifest of a complete download: its name, commit and files, and what else is known of it.

    Args:
        digests: SHA-256 of each file by name.
    """
    entries = [{"name": file.name, "size": file.size, "sha256": digests[file.name]} for file in files]
    write_json(folder / MANIFEST, {"source": source, "commit": commit, **more, "files": entries})


def download(source: str, hub: Hub, folder: Path, workers: int) -> None:
    """Download a model's files into a folder, check them, and write the manifest last.

    Args:
        source: the model as named in the configuration, for the manifest.
        hub: client for the model.
        folder: folder to download to.
        workers: number of files to download at a time.

    Raises:
        InputError: the model is not available, does not fit on the disk, or a file cannot be downloaded. Correct files
            are kept.
    """
    with lock_folder(folder):
        commit, listed = list_files(source, hub)
        try:
            files = choose_files(listed)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        check_folder(source, folder)
        (folder / CHECKED).touch()
        check_space(files, hub, folder)
        digests = download_files(source, hub, files, folder, workers, CheckedFiles(folder))
        remove_others(files, folder)
        write_manifest(source, commit, files, digests, folder)
