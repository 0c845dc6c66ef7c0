"""Tokenized examples on disk: made once for all jobs that tokenize the same records alike, by their fingerprint."""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowInvalid

from distill.common.digest import digest_of
from distill.common.files import write_json
from distill.models.chat import ChatTemplate
from distill.models.example_folders import (
    INDEX,
    DamagedError,
    list_folders,
    list_leftovers,
    name_unfinished,
    read_facts,
    write_sources,
)
from distill.models.example_table import ExampleTable, open_table

logger = logging.getLogger(__name__)

FORMAT = 1  # of the folder; part of the fingerprint
TABLE = "examples.arrow"


@dataclass(frozen=True)
class CachedExamples:
    """Examples of a set of records, and what was found while they were made.

    Attributes:
        table: the examples.
        counts: what `encode_examples` reports, as a JSON object.
    """

    table: ExampleTable
    counts: dict[str, Any]


def describe_chat(chat: ChatTemplate | None) -> dict[str, Any] | None:
    """What decides which tokens a chat template gives a text, by content: not the place of its tokenizer."""
    if chat is None:
        return None
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return chat.digest_parts() | {
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added": {str(index): repr(token) for index, token in tokenizer.added_tokens_decoder.items()},
        "tokenizer": digest_files(tokenizer) if backend is None else digest_of(backend.to_str()),
        "rows": chat.rows,
    }


def digest_files(tokenizer: Any) -> str:
    """Hash what a tokenizer without a Rust backend saves."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest_of({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def get_cached(
    cache: Path,
    parts: dict[str, Any],
    sources: Sequence[Path],
    make: Callable[[Path], tuple[ExampleTable, dict[str, Any]]],
    check: Callable[[ExampleTable], bool],
) -> CachedExamples:
    """Open the examples with this fingerprint, or make them.

    The folder appears whole: it is made aside and renamed. Jobs that need the same examples at the same time wait for
    the first one, also on another machine if the disk locks files across machines. Where it does not, each makes them,
    and one of the equal results is kept.

    Args:
        cache: folder of all cached examples.
        parts: everything that decides the examples, among it digests of the `records` and the `software`.
        sources: files that the records were read from. Examples of their earlier contents are removed.
        make: writes the table to a path; returns it with its counts.
        check: whether a table is what this code makes of the first records.

    Raises:
        OSError: the cache cannot be written.
    """
    fingerprint = digest_of({"format": FORMAT, **parts})
    folder = cache / fingerprint
    if found := open_folder(folder, check):
        logger.info("using the examples that another job has tokenized: %s", folder)
        return found
    cache.mkdir(parents=True, exist_ok=True)
    files = write_sources(cache, sources)
    with lock(cache / f".{fingerprint}.lock", folder):
        if found := open_folder(folder, check, warn=True):  # another job has made them in the meantime
            return found
        remove_leftovers(cache)
        aside = cache / name_unfinished(fingerprint)
        aside.mkdir()
        try:
            table, counts = make(aside / TABLE)
            del table  # it maps the file under its temporary name
            facts = {"sources": files, "records": parts["records"], "software": parts["software"], "counts": counts}
            write_json(aside / INDEX, facts | measure_file(aside / TABLE))
            publish(aside, folder, check)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    remove_superseded(cache, files, parts)
    found = open_folder(folder, check)
    if found is None:
        raise OSError(f"{folder}: the examples that were just written cannot be read")
    return found


def open_folder(folder: Path, check: Callable[[ExampleTable], bool], warn: bool = False) -> CachedExamples | None:
    """Open a folder of the cache; None if it does not exist, or is not what this code makes.

    Args:
        folder: the folder.
        check: see `get_cached`.
        warn: whether to say why a folder cannot be used.
    """
    if not folder.exists():
        return None
    try:
        found = read_folder(folder)
        if not check(found.table):
            raise DamagedError("its first example is not what this version makes of the first record")
    except DamagedError as error:
        if warn:
            logger.warning("%s: damaged examples (%s): the records are tokenized again", folder, error)
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written to; the time is for `make cache` only
        os.utime(folder / INDEX)
    return found


def read_folder(folder: Path) -> CachedExamples:
    """Read a folder of the cache, and compare the bytes of its table with those that were written.

    Raises:
        DamagedError: a file is missing or damaged.
    """
    try:
        facts = read_facts(folder)
        if measure_file(folder / TABLE) != {name: facts[name] for name in ("bytes", "sha256")}:
            raise DamagedError(f"{TABLE} has other bytes than were written")
        table, counts = open_table(folder / TABLE), facts["counts"]
        if len(table) != counts["kept"]:
            raise DamagedError(f"expected {counts['kept']} examples, found {len(table)}")
    except (OSError, LookupError, TypeError, ArrowInvalid) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    return CachedExamples(table, counts)


def measure_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def publish(aside: Path, folder: Path, check: Callable[[ExampleTable], bool]) -> None:
    """Rename a finished folder, unless another machine has made the same one; a damaged one is replaced.

    A process that has the damaged file mapped keeps it, since its blocks remain until it is closed.
    """
    if folder.exists() and open_folder(folder, check) is None:
        damaged = aside / "damaged"  # removed with the temporary folder
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, damaged)
        if damaged.exists():
            shutil.rmtree(damaged)
    try:
        os.rename(aside, folder)
    except OSError:
        if open_folder(folder, check) is None:
            raise


@contextlib.contextmanager
def lock(path: Path, folder: Path) -> Iterator[None]:
    """Hold a lock, which ends with the process; where the disk has no locks, do without.

    Args:
        path: file of the lock, removed afterwards. A job that waits for the removed file finds what the holder made.
        folder: what is made, for the message.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another job tokenizes the same records to %s; waiting for it to finish", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.info("%s: the disk has no locks (%s); other jobs may tokenize the same records", path, error)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_leftovers(cache: Path) -> None:
    """Remove what jobs on this machine have left behind that were killed."""
    for path in list_leftovers(cache):
        shutil.rmtree(path, ignore_errors=True)


def remove_superseded(cache: Path, sources: Sequence[str], parts: dict[str, Any]) -> None:
    """Remove examples of earlier records of the same files, which no job of this run can need any more.

    Those of earlier versions of the software stay: a training that began before an update may still read them.

    Args:
        cache: folder of all cached examples.
        sources: the files, from `write_sources`.
        parts: everything that decides their examples now.
    """
    for folder in list_folders(cache) if sources else ():
        try:
            facts = read_facts(folder)
        except DamagedError:
            continue
        is_earlier = facts.get("software") == parts["software"] and facts.get("records") != parts["records"]
        if facts["sources"] == sources and is_earlier:
            logger.info("removing the tokenized examples of earlier records: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
