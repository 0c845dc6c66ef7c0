"""Tables of scores as CSV files. A row is a NamedTuple; its annotations say what each cell must hold.

The csv module reads and writes them rather than pandas, because errors name the line, and floats come back exactly.
"""

import csv
import typing
from collections.abc import Iterable
from os import PathLike
from typing import Any

from distill.common.errors import InputError, format_problem
from distill.common.files import write_atomically
from distill.evaluation.metrics import list_metrics


def write_rows(path: str | PathLike[str], kind: Any, rows: Iterable[tuple[Any, ...]]) -> int:
    """Write a table, with an empty cell for None.

    Args:
        path: the CSV file.
        kind: the rows' NamedTuple class; its fields are the columns.
        rows: in the order of the file.

    Returns:
        Number of rows.
    """
    rows = list(rows)
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([kind._fields, *rows])
    return len(rows)


def read_rows(path: str | PathLike[str], kind: Any) -> list[Any]:
    """Read a table.

    Args:
        path: the CSV file.
        kind: the rows' NamedTuple class; its fields are the columns.

    Raises:
        InputError: the columns differ, or a cell does not hold what its column needs; names file, line and field.
    """
    kinds = typing.get_type_hints(kind)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != kind._fields:
            raise InputError(f"{path}:1: expected the columns {','.join(kind._fields)}, found {reader.fieldnames}")
        rows = []
        for row in reader:
            place = str(path), reader.line_num
            rows.append(kind(**{field: parse_cell(row[field], field, kinds[field], *place) for field in kinds}))
    return rows


def parse_cell(text: str | None, field: str, kind: Any, path: str, line: int) -> Any:
    """The value of a cell: text, a whole number, or a number that is None if the cell is empty.

    Args:
        text: the cell; None if the line is too short.
        field: name of its column; a `metric` must be a declared one.
        kind: type of its column.
        path: the file, for errors.
        line: the line, for errors.

    Raises:
        InputError: the cell holds something else.
    """
    if field == "metric" and text not in (metrics := list_metrics([text or ""])):
        raise InputError(format_problem(path, line, field, f"one of {', '.join(metrics)}", text))
    if kind is str and text is None:
        raise InputError(format_problem(path, line, field, "text", text))
    if kind is str:
        return text
    if text == "" and kind is not int:
        return None
    try:
        number = float(text)  # type: ignore[arg-type]
        return int(number) if kind is int else number
    except (TypeError, ValueError):
        raise InputError(format_problem(path, line, field, "a number", text)) from None
