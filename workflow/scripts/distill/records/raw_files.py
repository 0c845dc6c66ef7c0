"""Read the rows of raw files: JSON arrays, JSONL, CSV, Parquet and Arrow, alone or as the files of a downloaded split.

The library `datasets` reads Parquet and Arrow. For the text formats it is not used, since it would
guess the types of columns, such as dates in text, and fill up CSV rows with too few cells.
"""

import csv
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from distill.common.downloads import MANIFEST, read_manifest
from distill.common.errors import InputError, format_problem
from distill.common.files import BOM, read_jsonl
from distill.records.json_array import read_array

Place = int | str  # line number in JSONL, otherwise `record 3`
SEPARATORS = {".csv": ",", ".tsv": "\t"}
BATCH = 1000  # rows of a Parquet file that are read at a time; the default fails if the first group of rows is empty
TABLES = (".parquet", ".arrow")
COLUMNAR = (*SEPARATORS, *TABLES)  # endings of the files whose rows all have the same columns


class RawFile(NamedTuple):
    """A raw file.

    Attributes:
        path: the file.
        separator: character between the cells of a CSV file; None for that of the file's ending.
    """

    path: Path
    separator: str | None = None

    @property
    def suffix(self) -> str:
        """The ending that decides how the file is read."""
        return self.path.suffix.lower()

    @property
    def is_text(self) -> bool:
        """Whether all values are text."""
        return self.suffix in SEPARATORS

    @property
    def is_columnar(self) -> bool:
        """Whether all rows have the same columns, which are known before a row is read."""
        return self.suffix in COLUMNAR


def list_raw_files(path: Path) -> list[RawFile]:
    """Return the files of a path: the file itself, or those that the manifest of a download lists.

    Raises:
        InputError: there is no such file, or a downloaded file is missing or has another size than in the manifest.
    """
    if path.name == MANIFEST:
        manifest = read_manifest(path)
        return [RawFile(path.parent / file["name"], manifest.get("separator")) for file in manifest["files"]]
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return [RawFile(path)]


def read_columns(file: RawFile) -> list[str]:
    """Return the names of the columns of a file with `is_columnar`.

    Raises:
        InputError: the file cannot be read; names it.
    """
    if file.is_text:
        return open_csv(file)[0]
    with open_table(file) as table:
        return list(table.column_names)


def read_rows(file: RawFile, columns: Collection[str] = ()) -> Iterator[tuple[Place, Any]]:
    """Yield (place, row) for each row; of a file with `is_columnar` the given columns alone.

    A file that is not columnar is a JSON array or JSONL, whose elements need not be objects. All values of a CSV file
    are text. Parquet and Arrow files give every object the keys of all others; keys without a value are left out.

    Raises:
        InputError: the file is malformed; names it, and the row where that is known.
    """
    if file.is_text:
        yield from read_csv(file, columns)
    elif file.suffix in TABLES:
        yield from read_table(file, columns)
    else:
        yield from read_array(file.path) if is_array(file.path) else read_jsonl(file.path)


def is_array(path: Path) -> bool:
    """Whether a file is a JSON array rather than JSONL, judged by its first character."""
    with open(path, "rb") as file:
        while block := file.read(4096):
            if text := block.removeprefix(BOM).lstrip():
                return text.startswith(b"[")
    return False


def open_csv(file: RawFile) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the column names of a CSV file, and an iterator of (place, cells) over its rows without blank lines.

    Raises:
        InputError: the file is not CSV, has a column twice, or a row has another number of cells than columns.
    """
    csv.field_size_limit(sys.maxsize)  # the default is 128 KiB per cell
    rows = read_cells(file)
    place, names = next(rows, ("record 0", []))
    repeated = [name for name in names if names.count(name) > 1]
    if not names or repeated:
        found = repeated[0] if repeated else "an empty file"
        raise InputError(format_problem(file.path, "header", "columns", "a name for each column, each once", found))

    def check_rows() -> Iterator[tuple[str, list[str]]]:
        for place, cells in rows:
            if len(cells) != len(names):
                expected = f"{len(names)} cells as in the header"
                raise InputError(format_problem(file.path, place, "record", expected, cells))
            yield place, cells

    return names, check_rows()


def read_cells(file: RawFile) -> Iterator[tuple[str, list[str]]]:
    """Yield (`record N`, cells) for each row of a CSV file that is not a blank line; the header is `record 0`.

    Raises:
        InputError: the file is not CSV.
    """
    number = -1
    # Bytes that are not UTF-8 become lone surrogates, so that `find_writing_faults` names the record.
    with open(file.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        reader = csv.reader(opened, delimiter=file.separator or SEPARATORS[file.suffix], strict=True)
        try:
            for cells in reader:
                if cells:
                    number += 1
                    yield f"record {number}", cells
        except csv.Error as error:
            problem = format_problem(file.path, f"record {number + 1}", "record", "CSV", str(error))
            raise InputError(problem) from None


def read_csv(file: RawFile, columns: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (`record N` from 1, row) for each row of a CSV file."""
    names, rows = open_csv(file)
    for place, cells in rows:
        yield place, {name: cell for name, cell in zip(names, cells, strict=True) if name in columns}


@contextmanager
def open_table(file: RawFile, columns: Collection[str] | None = None) -> Iterator[Any]:
    """Open a Parquet or Arrow file as a streaming dataset with some or all of its columns.

    Raises:
        InputError: the file cannot be read; names it.
    """
    import pyarrow  # takes 0.5 s together with datasets
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.parquet.parquet import Parquet

    # `load_dataset` would take special characters in the path for a pattern.
    files = DataFilesDict(train=DataFilesList([str(file.path)], [()]))
    with TemporaryDirectory() as cache:
        try:
            options: dict[str, Any] = {"cache_dir": cache, "data_files": files}
            is_parquet = file.suffix == ".parquet"
            builder: Any = Parquet(batch_size=BATCH, **options) if is_parquet else Arrow(**options)
            table = builder.as_streaming_dataset("train")
            yield table if columns is None else table.select_columns(list(columns))
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            kind = file.suffix.removeprefix(".").capitalize()
            raise InputError(f"{file.path}: expected a {kind} file, found one that cannot be read ({error})") from error


def read_table(file: RawFile, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`record N` from 1, row) for each row of a Parquet or Arrow file."""
    with open_table(file, columns) as table:
        for number, row in enumerate(table, start=1):
            yield f"record {number}", {name: drop_nulls(value) for name, value in row.items()}


def drop_nulls(value: Any) -> Any:
    """Return a value without the keys of its objects that are null, at any depth."""
    if isinstance(value, Mapping):
        return {name: drop_nulls(one) for name, one in value.items() if one is not None}
    return [drop_nulls(one) for one in value] if isinstance(value, list) else value
