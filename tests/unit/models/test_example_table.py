"""Tokenized examples in Arrow: what is read is what was written, on disk and in memory."""

import errno

import numpy as np
import pyarrow as pa
import pytest
from datasets.table import InMemoryTable, MemoryMappedTable

from distill.models import example_table
from distill.models.example_table import BATCH_ROWS, COLUMNS, ExampleTable, get_lengths, open_table, write_table

FIRST = {"uid": "a", "prompt": [1, 2], "completion": [3], "teacher_prompt": [4], "teacher_completion": [7, 9]}
EXAMPLES = [
    FIRST | {"spans": [(0, 0), (2, 1)]},
    {"uid": "é", "prompt": [5], "completion": [], "teacher_prompt": [9, 8], "common_prompt": [],
     "teacher_completion": [], "spans": []},
]  # fmt: skip


@pytest.fixture(params=["disk", "memory"])
def path(request, tmp_path):
    return tmp_path / "table.arrow" if request.param == "disk" else None


def test_examples_come_back_as_they_were(path):
    table = write_table(EXAMPLES, COLUMNS, path)
    assert list(table) == table[:] == [table[0], table[-1]] == EXAMPLES
    assert table[1:] == EXAMPLES[1:]
    assert [type(one) for one in table[0]["prompt"]] == [int, int]
    assert table[0]["spans"] == [(0, 0), (2, 1)]
    assert "common_prompt" not in table[0]  # missing is not empty
    assert table.get_uids() == ["a", "é"]
    with pytest.raises(IndexError):
        table[2]


def test_only_the_columns_of_the_table_are_kept(path):
    assert list(write_table(EXAMPLES, ("uid", "prompt"), path)) == [
        {name: example[name] for name in ("uid", "prompt")} for example in EXAMPLES
    ]


def test_an_empty_table(path):
    table = write_table([], COLUMNS, path)
    assert (len(table), list(table), table[:1], table.get_uids()) == (0, [], [], [])
    assert table.get_lengths("prompt").tolist() == []


def test_several_batches_are_read_by_row_and_in_order(path):
    count = 2 * BATCH_ROWS + 7
    examples = [{"uid": str(n), "prompt": list(range(n % 5)), "completion": [n] * (n % 3)} for n in range(count)]
    table = write_table(iter(examples), ("uid", "prompt", "completion"), path)
    assert list(table) == examples
    for place in (0, 1, BATCH_ROWS - 1, BATCH_ROWS, count - 1):
        assert table[place] == examples[place]


def test_lengths_are_those_of_a_list(path):
    table = write_table(EXAMPLES, COLUMNS, path)
    assert get_lengths(table, "prompt", "completion").tolist() == [3, 1]
    assert get_lengths(EXAMPLES, "prompt", "completion").tolist() == [3, 1]
    assert get_lengths(table).tolist() == get_lengths(EXAMPLES).tolist() == [0, 0]
    assert get_lengths(table, "prompt").dtype == np.int64


def test_lengths_read_no_tokens(path, monkeypatch):
    table = write_table(EXAMPLES, COLUMNS, path)
    monkeypatch.setattr(example_table, "read_rows", None)
    assert table.get_lengths("teacher_prompt").tolist() == [1, 2]


def test_a_file_is_mapped_and_takes_four_bytes_a_token(tmp_path):
    path, tokens = tmp_path / "table.arrow", 200_000
    before = pa.total_allocated_bytes()
    table = write_table(({"uid": "", "prompt": [n] * 1000} for n in range(tokens // 1000)), ("uid", "prompt"), path)
    assert isinstance(table.rows.data, MemoryMappedTable)
    assert 4 * tokens < path.stat().st_size < 4.1 * tokens
    assert pa.total_allocated_bytes() - before < tokens
    assert isinstance(write_table(EXAMPLES, COLUMNS).rows.data, InMemoryTable)


def test_a_token_that_does_not_fit_is_an_error(path):
    with pytest.raises(pa.ArrowInvalid, match="2147483648"):
        write_table([FIRST | {"prompt": [2**31]}], COLUMNS, path)


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(example_table.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as error:
        write_table(EXAMPLES, COLUMNS, tmp_path / "table.arrow")
    assert error.value.filename == str(tmp_path / "table.arrow")


def test_an_opened_file_is_the_same_table(tmp_path):
    write_table(EXAMPLES, COLUMNS, tmp_path / "table.arrow")
    table = open_table(tmp_path / "table.arrow")
    assert isinstance(table, ExampleTable)
    assert list(table) == EXAMPLES
