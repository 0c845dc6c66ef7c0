"""Mix a category's GRPO and SFT records: a first pass checks and ranks the records, a second writes those taken.

Memory is bounded for files of any size: the uid, rank and file position of each record are in a temporary SQLite
database, which spills to the system's temporary folder.
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
from distill.common.files import BOM, parse_json_line, write_jsonl
from distill.common.hashing import HASHES, hash_uid
from distill.records.raw_records import (
    Record,
    check_label,
    check_record,
    check_writable,
    get_fields,
    get_fields_uid,
    get_label,
)

logger = logging.getLogger(__name__)

CACHE_KIB = 4 * 1024
CREATE_TABLE = """CREATE TABLE prompts (uid BLOB PRIMARY KEY, origin TEXT, rank INTEGER, line INTEGER, offset INTEGER)
WITHOUT ROWID"""
SELECT_TAKEN = """SELECT line, offset FROM
(SELECT line, offset FROM prompts WHERE origin = ? ORDER BY rank, uid LIMIT ?) ORDER BY line"""


class Source(NamedTuple):
    """A raw file.

    Attributes:
        origin: `grpo` or `sft`.
        path: the JSONL file.
        fraction: share of the records to take, from 0 to 1.
    """

    origin: str
    path: Path
    fraction: Fraction


class Labels(NamedTuple):
    """Where records have their true values.

    Attributes:
        fields: fields of the record; the first one present is used.
        answer_key: key in the answer of an SFT record without such a field; None to use fields only.
    """

    fields: Sequence[str]
    answer_key: str | None


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line) for each line that is not blank."""
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
    """Parse and check a raw line; return (record, problems). The record is empty if the line is not a JSON object."""
    try:
        record = parse_json_line(raw, path, line)
    except InputError as error:
        return {}, [str(error)]
    problems = check_record(record, path, line) + check_label(record, labels.fields, path, line)
    return record, problems or check_writable(record, path, line)


def scan_source(database: sqlite3.Connection, source: Source, seed: int, labels: Labels) -> tuple[dict[str, int], list]:
    """Check every record of a file and store the first one of each prompt in the database.

    Returns:
        Counts of records, duplicates and labels; problems, the ones after MOST_SHOWN left blank to save memory.
    """
    counts = {"records": 0, "duplicates": 0, "labels": 0}
    problems: list[str] = []
    for line, offset, raw in read_lines(source.path):
        counts["records"] += 1
        record, found = check_line(raw, source.path, line, labels)
        if found:
            problems += found if len(problems) < MOST_SHOWN else [""] * len(found)
            continue
        uid = get_fields_uid(get_fields(record))
        # SQLite integers are signed.
        row = (bytes.fromhex(uid), source.origin, hash_uid("mix", seed, uid) - HASHES // 2, line, offset)
        added = database.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?)", row).rowcount
        counts["duplicates"] += 1 - added
        counts["labels"] += added and get_label(record, source.origin, *labels) is not None
    if not counts["records"]:
        problems.append(format_problem(source.path, 1, "file", "at least one record", "an empty file"))
    return counts, problems


def read_chosen(source: Source, chosen: Iterable[tuple[int, int]]) -> Iterator[Record]:
    """Yield the records at the given (line, byte offset), with `origin` and `uid` added."""
    with open(source.path, "rb") as file:
        for line, offset in chosen:
            file.seek(offset)
            record = parse_json_line(file.readline(), source.path, line)
            yield {**record, "origin": source.origin, "uid": get_fields_uid(get_fields(record))}


def count_taken(category: str, sources: Sequence[Source], distinct: Sequence[int]) -> list[int]:
    """Return the number of records to take from each source, given its number of distinct prompts.

    Raises:
        InputError: no record is taken.
    """
    pairs = list(zip(sources, distinct, strict=True))
    taken = [int(n * source.fraction) for source, n in pairs]
    if not sum(taken):
        shares = ", ".join(f"{source.origin} {float(source.fraction):g} of {n}" for source, n in pairs)
        shares = shares or "both fractions are 0"
        raise InputError(f"{category}: no record is taken ({shares}): raise mix.*_fraction or add records")
    return taken


def mix_records(category: str, sources: Sequence[Source], seed: int, labels: Labels, out: Path) -> dict[str, int]:
    """Write the mixed records of a category.

    From each source, int(n · fraction) records are taken, where n does not count duplicate prompts. These are the
    records with the smallest hashes of seed and uid, in file order; an additional record therefore changes the
    selection by at most two records. Of records with the same prompt, the first one in all sources is kept. `origin`
    and `uid` are added to each record and replace fields of the same name.

    Args:
        category: name for messages.
        sources: raw files, in order of precedence for duplicate prompts.
        seed: seed of the hash.
        labels: where the records have their true values.
        out: JSONL file to write.

    Returns:
        Number of records taken, by origin.

    Raises:
        InputError: a file is missing, empty or contains invalid records (all of them are listed), or no record is
            taken.
    """
    missing = [f"{source.path}: no such file" for source in sources if not source.path.is_file()]
    raise_problems(missing, f"raw files of {category}")
    with closing(sqlite3.connect("")) as database:  # "": a temporary database, which SQLite removes
        for statement in (f"PRAGMA cache_size = -{CACHE_KIB}", "PRAGMA journal_mode = OFF", CREATE_TABLE):
            database.execute(statement)
        scans = [scan_source(database, source, seed, labels) for source in sources]
        raise_problems([p for _, problems in scans for p in problems], f"raw records of {category}")
        taken = count_taken(category, sources, [counts["records"] - counts["duplicates"] for counts, _ in scans])
        cursors = (database.execute(SELECT_TAKEN, (s.origin, n)) for s, n in zip(sources, taken, strict=True))
        mixed = (r for source, chosen in zip(sources, cursors, strict=True) for r in read_chosen(source, chosen))
        write_jsonl(out, mixed)
    for source, (counts, _), n in zip(sources, scans, taken, strict=True):
        log_source(category, source, counts, n)
    return {source.origin: n for source, n in zip(sources, taken, strict=True)}


def log_source(category: str, source: Source, counts: dict[str, Any], taken: int) -> None:
    """Log one line: records = taken + not taken + duplicates."""
    not_taken = counts["records"] - counts["duplicates"] - taken
    text = "%s %s: %d records = %d taken + %d not taken + %d duplicate prompts dropped; %d prompts have a label (%s)"
    numbers = (counts["records"], taken, not_taken, counts["duplicates"], counts["labels"])
    logger.info(text, category, source.origin, *numbers, os.fspath(source.path))
