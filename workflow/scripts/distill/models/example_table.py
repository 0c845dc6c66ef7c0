"""Tokenized examples as an Arrow table: four bytes a token, in a file that is memory-mapped."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from distill.common.files import DISK_FULL

Example = dict[str, Any]

BATCH_ROWS = 1000  # rows that are converted at a time when all are read or written
TOKENS = ("prompt", "completion", "teacher_prompt", "common_prompt", "teacher_completion")
COLUMNS = ("uid", *TOKENS, "spans")  # `spans` holds the two numbers of each pair one after another


@runtime_checkable
class HasLengths(Protocol):
    """Examples that know their lengths without being read."""

    def get_lengths(self, *columns: str) -> np.ndarray:
        """Number of tokens of each example in some columns together, (examples,)."""


class ExampleTable(Sequence[Example]):
    """Tokenized examples, each of which is converted to lists of token ids when it is read.

    Args:
        dataset: from `write_table`, memory-mapped or in memory.
    """

    def __init__(self, dataset: Dataset):
        self.rows = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        (example,) = read_rows(self.rows[int(index)])
        return example

    def __iter__(self) -> Iterator[Example]:
        for table in self.rows.iter(BATCH_ROWS):
            yield from read_rows(table)

    def get_lengths(self, *columns: str) -> np.ndarray:
        """Number of tokens of each example in some columns together, (examples,); the tokens are not read."""
        lengths = np.zeros(len(self), dtype=np.int64)
        for column in columns if len(self) else ():
            lengths += pc.list_value_length(self.rows.data.column(column)).to_numpy()
        return lengths

    def get_uids(self) -> list[str]:
        """The uid of each example."""
        return self.rows.data.column("uid").to_pylist()


def read_rows(table: pa.Table) -> Iterator[Example]:
    """Convert the rows of a table, which are few; fields without a value are left out."""
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name == "uid":
            columns[name] = column.to_pylist()
            continue
        # The offsets of a row count from the start of the values, among which are those of other rows.
        offsets, values = column.offsets.to_pylist(), column.values.to_numpy()
        are_known = column.is_valid().to_pylist()
        columns[name] = [
            values[start:end].tolist() if is_known else None
            for (start, end), is_known in zip(pairwise(offsets), are_known, strict=True)
        ]
    for row in range(table.num_rows):
        example = {name: column[row] for name, column in columns.items() if column[row] is not None}
        if "spans" in example:
            example["spans"] = list(zip(example["spans"][::2], example["spans"][1::2], strict=True))
        yield example


def get_lengths(examples: Sequence[Example], *columns: str) -> np.ndarray:
    """Number of tokens of each example in some columns together, (examples,).

    Args:
        examples: a table, whose tokens are not read for this, or a list.
        columns: names of fields with token ids.
    """
    if isinstance(examples, HasLengths):
        return examples.get_lengths(*columns)
    return np.array([sum(len(example[column]) for column in columns) for example in examples], dtype=np.int64)


def write_table(examples: Iterable[Example], columns: Sequence[str], path: Path | None = None) -> ExampleTable:
    """Write examples, of which only a few are in memory at a time, and open the table.

    Args:
        examples: examples with these columns; a missing one is null.
        columns: some of COLUMNS.
        path: the file; None for a table in memory.

    Raises:
        OSError: the file cannot be written; names it, also if the disk is full.
    """
    features = Features({name: Value("string") if name == "uid" else List(Value("int32")) for name in columns})
    rows = ({name: flatten(example.get(name)) for name in columns} for example in examples)
    if path is None:
        buffer = pa.BufferOutputStream()
        write_rows(rows, features, buffer)
        return ExampleTable(Dataset.from_buffer(buffer.getvalue()))
    try:
        with open(path, "wb") as file:
            write_rows(rows, features, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None and error.errno in DISK_FULL:
            error.filename = str(path)
        raise
    return open_table(path)


def write_rows(rows: Iterable[dict[str, Any]], features: Features, stream: Any) -> None:
    """Write rows to an open file or an Arrow stream."""
    writer = ArrowWriter(features=features, stream=stream, writer_batch_size=BATCH_ROWS)
    for row in rows:
        writer.write(row)
    writer.finalize(close_stream=False)


def flatten(value: Any) -> Any:
    """The value of a column: the numbers of pairs one after another."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return [number for pair in value for number in pair]
    return value


def open_table(path: Path) -> ExampleTable:
    """Open a file from `write_table`, memory-mapped."""
    return ExampleTable(Dataset.from_file(str(path)))
