"""Mixing a category's GRPO and SFT records: which ones are taken, in one pass that checks and one that writes.

Memory stays bounded whatever the files hold: what is known of each record (uid, rank, place in its file) lies in a
temporary SQLite database, which spills to a file in the system's temporary folder.
"""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.errors import MOST_SHOWN, InputError, format_problem, raise_problems
from distill.common.files import BOM, dump_json, parse_json_line, write_jsonl
from distill.common.hashing import HASHES, hash_uid
from distill.records.raw_records import Record, check_label, check_record, get_label, get_texts, get_uid

logger = logging.getLogger(__name__)

CACHE_KIB = 4 * 1024
TABLE = """CREATE TABLE prompts (uid BLOB PRIMARY KEY, origin TEXT, rank INTEGER, line INTEGER, offset INTEGER)
WITHOUT ROWID"""
CHOICE = """SELECT line, offset FROM (SELECT line, offset FROM prompts WHERE origin = ? ORDER BY rank, uid LIMIT ?)
ORDER BY line"""


class Source(NamedTuple):
    """A raw file, what its records are (`grpo` or `sft`), and the share of them that is taken (0 to 1)."""

    origin: str
    path: Path
    fraction: Fraction


class Labels(NamedTuple):
    """Where the true values stand: fields of the record, then the key in an SFT answer."""

    fields: Sequence[str]
    answer_key: str | None


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line) of the lines that are not blank."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            start = offset
            offset += len(raw)
            if number == 1 and raw.startswith(BOM):
                raw, start = raw.removeprefix(BOM), start + len(BOM)
            if raw.strip():
                yield number, start, raw


def check_line(raw: bytes, path: Path, line: int, labels: Labels) -> tuple[Record, list[str]]:
    """(record, problems) of a raw line; the record is empty where the line is none."""
    try:
        record = parse_json_line(raw, path, line)
    except InputError as error:
        return {}, [str(error)]
    problems = check_record(record, path, line) + check_label(record, labels.fields, path, line)
    if not problems:
        try:
            dump_json(record).encode()
        except ValueError as error:
            expected = "values that JSON in UTF-8 can hold (no NaN, infinity, lone surrogate)"
            problems = [format_problem(path, line, "line", expected, str(error))]
    return record, problems


def scan_source(database: sqlite3.Connection, source: Source, seed: int, labels: Labels) -> tuple[dict[str, int], list]:
    """Check every record of a file and note the first one of each prompt.

    Returns:
        (counts of records, duplicates and labels; problems, of which those past MOST_SHOWN are blank to save memory)
    """
    counts = {"records": 0, "duplicates": 0, "labels": 0}
    problems: list[str] = []
    for line, offset, raw in read_lines(source.path):
        counts["records"] += 1
        record, found = check_line(raw, source.path, line, labels)
        if found:
            problems += found if len(problems) < MOST_SHOWN else [""] * len(found)
            continue
        uid = get_uid(*get_texts(record))
        # SQLite's integers are signed.
        row = (bytes.fromhex(uid), source.origin, hash_uid("mix", seed, uid) - HASHES // 2, line, offset)
        added = database.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?)", row).rowcount
        counts["duplicates"] += 1 - added
        counts["labels"] += added and get_label(record, source.origin, *labels) is not None
    if not counts["records"]:
        problems.append(format_problem(source.path, 1, "file", "at least one record", "an empty file"))
    return counts, problems


def read_chosen(source: Source, chosen: Iterable[tuple[int, int]]) -> Iterator[Record]:
    """Yield the records at the given (line, byte offset) with `origin` and `uid`."""
    with open(source.path, "rb") as file:
        for line, offset in chosen:
            file.seek(offset)
            record = parse_json_line(file.readline(), source.path, line)
            yield {**record, "origin": source.origin, "uid": get_uid(*get_texts(record))}


def mix_records(category: str, sources: Sequence[Source], seed: int, labels: Labels, out: Path) -> dict[str, int]:
    """Write the mixed records of a category: of each source int(n · fraction), n counted without duplicate prompts.

    The records with the smallest hash of seed and uid are taken, in the order of the files, so that a record more
    changes at most two others' lot. Of records with the same system and user text the first one stays, over all
    sources in their order. A written record is the raw one with `origin` and `uid` (over fields of that name).

    Returns:
        How many records were taken, by origin.

    Raises:
        InputError: a file is missing, empty or holds bad records (all are listed), or no record is taken.
    """
    missing = [f"{source.path}: no such file" for source in sources if not source.path.is_file()]
    raise_problems(missing, f"raw files of {category}")
    with closing(sqlite3.connect("")) as database:  # "": a temporary database that SQLite removes itself
        for statement in (f"PRAGMA cache_size = -{CACHE_KIB}", "PRAGMA journal_mode = OFF", TABLE):
            database.execute(statement)
        scans = [scan_source(database, source, seed, labels) for source in sources]
        raise_problems([p for _, problems in scans for p in problems], f"raw records of {category}")
        kept = [counts["records"] - counts["duplicates"] for counts, _ in scans]
        taken = [int(n * source.fraction) for n, source in zip(kept, sources, strict=True)]
        if not sum(taken):
            shares = ", ".join(f"{s.origin} {float(s.fraction):g} of {n}" for s, n in zip(sources, kept, strict=True))
            shares = shares or "both fractions are 0"
            raise InputError(f"{category}: no record is taken ({shares}): raise mix.*_fraction or add records")
        cursors = (database.execute(CHOICE, (s.origin, n)) for s, n in zip(sources, taken, strict=True))
        mixed = (r for source, chosen in zip(sources, cursors, strict=True) for r in read_chosen(source, chosen))
        write_jsonl(out, mixed)
    for source, (counts, _), n in zip(sources, scans, taken, strict=True):
        log_source(category, source, counts, n)
    return {source.origin: n for source, n in zip(sources, taken, strict=True)}


def log_source(category: str, source: Source, counts: dict[str, Any], taken: int) -> None:
    """One line: records in = taken + left + duplicates."""
    left = counts["records"] - counts["duplicates"] - taken
    text = "%s %s: %d records = %d taken + %d left + %d duplicate prompts dropped; %d of the prompts have a label (%s)"
    numbers = (counts["records"], taken, left, counts["duplicates"], counts["labels"])
    logger.info(text, category, source.origin, *numbers, os.fspath(source.path))
