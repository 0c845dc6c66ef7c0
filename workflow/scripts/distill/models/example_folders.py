"""The folders of tokenized examples: where they are, and what made them. This module does not import torch."""

import argparse
import contextlib
import json
import os
import socket
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from distill.common.digest import code_digest, digest_of
from distill.common.errors import InputError
from distill.records.split_reader import SplitReader, join_digests

EXAMPLES = Path("artifacts/cache/examples")
INDEX = "index.json"
LIBRARIES = ("transformers", "tokenizers", "jinja2", "sentencepiece")  # they render templates and split texts
SCRIPTS = Path(__file__).parents[2]  # the folder that imports start from


class DamagedError(Exception):
    """A folder of the cache is incomplete, or has other bytes than those that were written."""


def add_examples_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of the cache to a command line."""
    parser.add_argument(
        "--examples",
        type=Path,
        default=EXAMPLES,
        help="Cache of tokenized records, which jobs that tokenize the same records alike share. Default: %(default)s.",
    )


def digest_software() -> str:
    """Digest of the code and the versions of the libraries that decide the tokens of a text."""
    versions: dict[str, str | None] = dict.fromkeys(LIBRARIES)
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    code = code_digest(Path(__file__).with_name("examples.py"), SCRIPTS)
    return digest_of({"code": code, "libraries": versions})


def list_folders(cache: Path) -> list[Path]:
    """Return the finished folders of a cache."""
    return sorted(path for path in cache.glob("*") if path.is_dir() and not path.name.startswith("."))


def name_unfinished(fingerprint: str) -> str:
    """Return the name of the folder in which this process makes the examples with a fingerprint."""
    return "@".join([f".{fingerprint}", socket.gethostname(), str(os.getpid()), f"{uuid.uuid4().hex}.tmp"])


def list_leftovers(cache: Path) -> list[Path]:
    """Return the unfinished folders of a cache that jobs on this machine have left behind, which were killed."""
    found = []
    for path in sorted(cache.glob(".*@*@*@*.tmp")):
        _, host, process, _ = path.name.split("@")
        if host == socket.gethostname() and not psutil.pid_exists(int(process)):
            found.append(path)
    return found


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what the index of a folder says.

    Raises:
        DamagedError: it is missing or damaged.
    """
    try:
        facts = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if not isinstance(facts["sources"], list) or not isinstance(facts["counts"], dict):
            raise TypeError("expected a list of sources, and counts by name")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{INDEX}: {type(error).__name__}: {error}") from error
    return facts


def write_sources(cache: Path, sources: Sequence[Path]) -> list[str]:
    """Return the paths of files from the cache on, so that both may move together."""
    return [os.path.relpath(path, cache.absolute()) for path in sources]


def is_current(folder: Path, facts: dict[str, Any], digests: dict[Path, str | None]) -> bool:
    """Whether the same software would make the examples again from the files that they were made from.

    Args:
        folder: a folder of the cache.
        facts: its index.
        digests: digests of the splits that have been read so far, by path; further ones are added.
    """
    if facts.get("software") != digest_software():
        return False
    paths = [Path(os.path.normpath(folder.absolute().parent / source)) for source in facts["sources"]]
    for path in paths:
        if path not in digests:
            digests[path] = digest_split(path)
    found = [digests[path] for path in paths]
    return bool(found) and None not in found and facts.get("records") == join_digests([str(one) for one in found])


def digest_split(path: Path) -> str | None:
    """Digest of the records of a split by the path of its .jsonl file; None if it cannot be read."""
    try:
        return SplitReader(path.parent, path.stem).digest
    except (InputError, OSError):  # removed, or being written
        return None
