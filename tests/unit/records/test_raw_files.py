"""Rows of raw files: the same values from every format of files, and errors that name file and record."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import FORMATS, write_rows

from distill.common.errors import InputError
from distill.records.raw_files import RawFile, list_raw_files, read_columns, read_rows

ROWS = [{"q": "何?", "n": 1, "l": [{"a": "x"}]}, {"q": "007", "n": None, "l": []}, {"q": "NA", "n": 3, "l": None}]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, kind):
    file = RawFile(write_rows(tmp_path / f"rows.{kind}", ROWS))
    places, rows = zip(*read_rows(file, ["q", "n", "l"]), strict=True)
    assert list(rows) == ROWS
    assert list(places) == ([1, 2, 3] if kind == "jsonl" else ["record 1", "record 2", "record 3"])
    if file.is_columnar:
        assert read_columns(file) == ["q", "n", "l"]
        assert [row for _, row in read_rows(file, ["n"])] == [{"n": row["n"]} for row in ROWS]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_special_characters_in_a_path_are_no_pattern(tmp_path, kind):
    file = RawFile(write_rows(tmp_path / f"a[1]*{{x}}.{kind}", [{"q": "a"}]))
    assert list(read_rows(file, ["q"])) == [("record 1", {"q": "a"})]


def test_an_arrow_file_with_a_footer_is_read(tmp_path):
    table = pa.table({"q": ["a", "b"]})
    with pa.ipc.new_file(tmp_path / "f.arrow", table.schema) as writer:
        writer.write_table(table)
    assert [row["q"] for _, row in read_rows(RawFile(tmp_path / "f.arrow"), ["q"])] == ["a", "b"]


def test_columns_that_are_not_read_may_hold_anything(tmp_path):
    pq.write_table(
        pa.table({"q": ["a"], "when": pa.array([0], pa.timestamp("s")), "b": [b"\0"]}), tmp_path / "f.parquet"
    )
    assert list(read_rows(RawFile(tmp_path / "f.parquet"), ["q"])) == [("record 1", {"q": "a"})]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_keys_that_other_objects_have_are_left_out(tmp_path, kind):
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": {"c": None}}}]
    file = RawFile(write_rows(tmp_path / f"f.{kind}", [{"calls": calls}]))
    ((_, row),) = read_rows(file, ["calls"])
    assert row == {"calls": [calls[0], {"name": "g", "arguments": {"b": {}}}]}


def test_csv_is_text(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text('\ufeffq,n\n007,NA\n\n"a\nb ""c""",\n', encoding="utf-8")
    rows = [("record 1", {"q": "007", "n": "NA"}), ("record 2", {"q": 'a\nb "c"', "n": ""})]
    assert list(read_rows(RawFile(path), ["q", "n"])) == rows
    path.rename(tmp_path / "f.tsv")
    (tmp_path / "f.tsv").write_text("q\tn\n1,2\t3\n")
    assert list(read_rows(RawFile(tmp_path / "f.tsv"), ["q"])) == [("record 1", {"q": "1,2"})]
    path.write_text("q;n\n1,2;3\n")
    assert list(read_rows(RawFile(path, ";"), ["q"])) == [("record 1", {"q": "1,2"})]


def test_a_cell_may_be_long(tmp_path):
    path = write_rows(tmp_path / "f.csv", [{"q": "x" * 200_000}])
    assert csv.field_size_limit() > 0
    ((_, row),) = read_rows(RawFile(path), ["q"])
    assert len(row["q"]) == 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"q,n\n1,2\n3\n", "record 2: record: expected 2 cells as in the header, found ['3']"),
        (b"q,n\n1,2,3\n", "record 1: record: expected 2 cells as in the header, found ['1', '2', '3']"),
        (b"q,q\n1,2\n", "header: columns: expected a name for each column, each once, found 'q'"),
        (b"", "header: columns: expected a name for each column, each once, found 'an empty file'"),
        (b'q,n\n1,"2\n', "record 1: record: expected CSV, found 'unexpected end of data'"),
    ],
)
def test_broken_csv_is_an_error(tmp_path, text, message):
    (tmp_path / "f.csv").write_bytes(text)
    with pytest.raises(InputError) as error:
        list(read_rows(RawFile(tmp_path / "f.csv"), ["q", "n"]))
    assert f"{tmp_path / 'f.csv'}:{message}" in str(error.value)


@pytest.mark.parametrize(("kind", "name"), [("parquet", "Parquet"), ("arrow", "Arrow")])
def test_a_broken_table_is_an_error(tmp_path, kind, name):
    path = write_rows(tmp_path / f"f.{kind}", ROWS)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=rf"f\.{kind}: expected a {name} file, found one that cannot be read"):
        read_columns(RawFile(path))
    with pytest.raises(InputError, match=rf"f\.{kind}: expected a {name} file, found one that cannot be read"):
        list(read_rows(RawFile(path), ["q"]))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list_raw_files(tmp_path / "f.parquet")
