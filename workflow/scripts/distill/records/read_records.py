"""Read a category's records of one source, check them and write them as mixed records with chat messages."""

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.errors import MOST_SHOWN, format_problem, raise_problems
from distill.common.files import write_jsonl
from distill.records.raw_files import Place, RawFile, list_raw_files, read_columns, read_rows
from distill.records.raw_records import (
    Fault,
    Record,
    find_faults,
    find_label_faults,
    find_writing_faults,
    get_fields,
    get_fields_uid,
)
from distill.records.shapes import SHAPES, Draft, list_fields, parse_tools

logger = logging.getLogger(__name__)

MESSAGE = re.compile(r"messages\[(\d+)\]")
FIRST_NAME = re.compile(r"[^.\[]+")


@dataclass(frozen=True)
class Reading:
    """How the records of a source are read.

    Attributes:
        format: source format, a key of SHAPES.
        system: system text of records without their own; None if all have one.
        columns: columns of the file by the field that each of them holds; other fields have the name of their column.
        label_fields: fields that may contain the true value; the first one present must be a number.
    """

    format: str
    system: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    label_fields: Sequence[str] = ()

    @property
    def fields(self) -> list[str]:
        """The fields that are read."""
        return list_fields(self.format, self.label_fields)

    def get_column(self, name: str) -> str:
        """Return the column that holds a field."""
        return self.columns.get(name, name)

    def rename(self, row: Record) -> Record:
        """Return a row with the names of fields in place of those of their columns."""
        known = {*self.columns, *self.columns.values()}
        others = {name: value for name, value in row.items() if name not in known}
        return others | {name: row[column] for name, column in self.columns.items() if column in row}

    def to_place(self, name: str) -> str:
        """Return the place of a field such as `messages[2].content` with the name of its column."""
        return FIRST_NAME.sub(lambda match: self.get_column(match[0]), name, count=1)


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the names that there are, and the closest one to a wrong name, for the end of a message."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"{', '.join(known) or 'none'}{f'; did you mean {near[0]}?' if near else ''}"


def check_columns(path: Path, columns: Sequence[str], reading: Reading) -> None:
    """Check that a file has the columns in `columns`, and one for each required field.

    Args:
        path: the file.
        columns: names of its columns.
        reading: how it is read.

    Raises:
        InputError: it lacks some of them; names those that there are.
    """
    problems = [
        f"{path}: source.columns.{name}: expected a column of the file, found {column!r}; the columns are "
        f"{suggest(column, columns)}"
        for name, column in reading.columns.items()
        if column not in columns
    ]
    problems += [
        f"{path}: expected a column {name!r}, or another one named in source.columns.{name}; the columns are "
        f"{suggest(name, columns)}"
        for name in SHAPES[reading.format].required
        if name not in reading.columns and name not in columns
    ]
    raise_problems(problems, "columns")


def read_source(path: Path, reading: Reading) -> Iterator[tuple[RawFile, Place, Any]]:
    """Yield (file, place, row) for each row of a source; a row is no object where a JSON array holds something else.

    A file with the same columns in all rows gives those of the fields alone.

    Raises:
        InputError: a file is missing or malformed, or lacks a column.
    """
    wanted = [reading.get_column(name) for name in reading.fields]
    for file in list_raw_files(path):
        columns = read_columns(file) if file.is_columnar else []
        if file.is_columnar:
            check_columns(file.path, columns, reading)
        for place, row in read_rows(file, [name for name in columns if name in wanted]):
            yield file, place, row


def to_fields(row: Record, file: RawFile, reading: Reading) -> Record:
    """Return a row with the names of fields, and with numbers as labels where all values are text."""
    fields = reading.rename(row)
    if file.is_text:
        fields |= {name: parse_number(fields[name]) for name in reading.label_fields if name in fields}
    return fields


def parse_number(cell: str) -> Any:
    """Return the number in a cell of a CSV file, None for an empty one, and any other text unchanged."""
    try:
        found = json.loads(cell) if cell.strip() else None
    except (ValueError, RecursionError):
        return cell
    return found if isinstance(found, int | float | None) else cell


def to_record(row: Record, reading: Reading) -> tuple[Record, list[Fault]]:
    """Convert a row, with fields as names, to a mixed record; return it with the faults, with which it is not used."""
    shape = SHAPES[reading.format]
    draft, faults = shape.read(row)
    system = row.get("system")
    if not isinstance(system, str | None):
        faults = [*faults, ("system", "text or nothing", system)]
    faults = [*faults, *(() if faults else find_label_faults(row, reading.label_fields))]
    if faults := faults or find_writing_faults(row):
        return {}, faults
    own, draft = split_system(draft)
    text = next((one for one in (own.content, system, reading.system) if one and one.strip()), None)
    if text is None:
        expected = "a system text: a system message, the field `system`, or source.system in the configuration"
        return {}, [(shape.required[0], expected, "none of them")]
    others = {name: value for name, value in row.items() if name not in (*shape.fields, "original_output")}
    context = {"tools": parse_tools(row.get("tools")), "teacher_prompt": row.get("teacher_prompt")}
    record = others | {name: value for name, value in context.items() if value not in (None, "")}
    record["messages"] = [{"role": "system", "content": text}, *draft.messages]
    names = [own.name, *draft.names]
    if found := find_faults(record):
        shown = [reading.to_place(name) for name in names]
        return {}, [rename_fault(fault, shape.required[0], names, shown) for fault in found]
    if shape.has_original:
        record["original_output"] = draft.original if (draft.original or "").strip() else None
    return record | {"origin": shape.origin, "uid": get_fields_uid(get_fields(record))}, []


class SystemMessage(NamedTuple):
    """The text of a record's system message, and its place in the record; of a record without one, `system`."""

    content: str | None
    name: str


def split_system(draft: Draft) -> tuple[SystemMessage, Draft]:
    """Return the system message at the start of a draft, and the draft without it."""
    if not draft.messages or draft.messages[0]["role"] != "system":
        return SystemMessage(None, "system"), draft
    first = SystemMessage(draft.messages[0]["content"], draft.names[0])
    return first, draft._replace(messages=draft.messages[1:], names=draft.names[1:])


def rename_fault(fault: Fault, whole: str, names: Sequence[str], shown: Sequence[str]) -> Fault:
    """Return a fault of chat messages with the names that the messages have in the raw record.

    Args:
        fault: of `find_faults`.
        whole: field that stands for the messages as a whole.
        names: the place of each message in the record.
        shown: the same, with the names of columns, for the text of what is expected.
    """

    def rename(text: str, places: Sequence[str]) -> str:
        return MESSAGE.sub(lambda match: places[int(match[1])], text)

    name, expected, found = fault
    return whole if name == "messages" else rename(name, names), rename(expected, shown), found


def find_problems(row: Any, file: RawFile, place: Place, reading: Reading) -> list[str]:
    """List the problems of a row, each with file, place and column."""
    if not isinstance(row, dict):
        expected = f"an object with {' and '.join(SHAPES[reading.format].required)}"
        return [format_problem(file.path, place, "record", expected, row)]
    _, faults = to_record(to_fields(row, file, reading), reading)
    return [format_problem(file.path, place, reading.to_place(name), *rest) for name, *rest in faults]


def check_records(category: str, path: Path, reading: Reading) -> int:
    """Check all records of a source and return their number.

    Raises:
        InputError: a file is missing, empty or malformed, lacks a column, or contains invalid records (all of them are
            listed).
    """
    problems: list[str] = []
    columns: dict[str, None] = {}  # of records in JSON, of which each may have others
    count = 0
    for file, place, row in read_source(path, reading):
        count += 1
        if isinstance(row, dict) and not file.is_columnar:
            columns |= dict.fromkeys(row)
        found = find_problems(row, file, place, reading)
        problems += found if len(problems) < MOST_SHOWN else [""] * len(found)
    if not count:
        problems.append(format_problem(path, 1, "file", "at least one record", "an empty file"))
    elif columns:  # a column that only some records lack is a problem of these
        check_columns(path, list(columns), reading)
    raise_problems(problems, f"raw records of {category}")
    return count


def read_distinct(path: Path, reading: Reading, counts: Counter[str]) -> Iterator[Record]:
    """Yield checked records as mixed records; only the first of several equal prompts is kept.

    Records without an original answer are counted in `counts["without_original"]`.
    """
    seen: set[bytes] = set()
    for file, _, row in read_source(path, reading):
        record, _ = to_record(to_fields(row, file, reading), reading)
        uid = bytes.fromhex(record["uid"])
        if uid not in seen:
            seen.add(uid)
            counts["without_original"] += record.get("original_output") is None
            yield record


def read_records(category: str, path: Path, out: Path, reading: Reading) -> int:
    """Write a category's records as mixed records; only the first of several equal prompts is kept.

    Args:
        category: name for messages.
        path: a raw file, or the manifest of a downloaded split.
        out: JSONL file to write.
        reading: how the records are read.

    Returns:
        Number of records written.

    Raises:
        InputError: see `check_records`.
    """
    total = check_records(category, path, reading)
    counts: Counter[str] = Counter()
    taken = write_jsonl(out, read_distinct(path, reading, counts))
    has_original = SHAPES[reading.format].has_original
    more = f"; {counts['without_original']} of the records taken have no original answer" if has_original else ""
    text = "%s: %d records = %d taken + %d duplicate prompts dropped%s (%s)"
    logger.info(text, category, total, taken, total - taken, more, path)
    return taken
