"""JSON arrays read element by element: the same values as from the json module, wherever a block of the file ends."""

import json

import pytest
from reading import read_alpaca

from distill.common.errors import InputError
from distill.records import json_array
from distill.records.json_array import read_array

VALUES = [
    {"text": 'a "quoted" \\ text\n', "list": [1, 2.5, -3e-7, True, None, []], "empty": {}},
    "何谓缘起？",
    12345678901234567890,
    "\U0001f600",
    [],
    {"nested": {"key": [{"key": "]},["}]}},
    7,
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 16, 64, 1 << 20])
@pytest.mark.parametrize(("indent", "is_ascii"), [(None, True), (2, False)])
def test_the_values_do_not_depend_on_where_a_block_ends(tmp_path, monkeypatch, block, indent, is_ascii):
    monkeypatch.setattr(json_array, "BLOCK", block)
    path = tmp_path / "array.json"
    path.write_text(json.dumps(VALUES, indent=indent, ensure_ascii=is_ascii) + " \r\n", encoding="utf-8")
    assert list(read_array(path)) == [(f"record {number}", value) for number, value in enumerate(VALUES, start=1)]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "record 3: record: expected a JSON array in UTF-8 (, or ] is missing), found ''"),
        ("[1, ]", "record 2: record: expected a JSON array in UTF-8 (Expecting value), found ']'"),
        ("[1] 2", "record 2: record: expected a JSON array in UTF-8 (2 after the end of the array)"),
        ("[1 2]", "record 2: record: expected a JSON array in UTF-8 (, or ] is missing), found '2"),
        ("[tru]", "record 1: record: expected a JSON array in UTF-8 (Expecting value), found 'tru]'"),
        ('[{"a": 1,, "b": 2}]', "record 1: record: expected a JSON array in UTF-8 (Expecting property name"),
        ('["a\nb"]', "record 1: record: expected a JSON array in UTF-8 (Invalid control character"),
        ('["a]', "record 1: record: expected a JSON array in UTF-8 (Unterminated string"),
        ("{}", "record 1: record: expected a JSON array in UTF-8 ([ is missing), found '{"),
    ],
)
def test_broken_arrays_are_errors(tmp_path, monkeypatch, block, text, message):
    monkeypatch.setattr(json_array, "BLOCK", block)
    (tmp_path / "array.json").write_text(text)
    with pytest.raises(InputError) as refused:
        list(read_array(tmp_path / "array.json"))
    assert f"array.json:{message}" in str(refused.value)


def test_a_broken_record_is_found_without_reading_the_rest(tmp_path, monkeypatch):
    """A file larger than memory must not be held whole to report its first record."""
    monkeypatch.setattr(json_array, "BLOCK", 64)
    text = "[{1: 2}, " + ", ".join(["3"] * 10_000) + "]"
    (tmp_path / "array.json").write_text(text)
    with open(tmp_path / "array.json", encoding="utf-8") as file:
        window = json_array.Window(file)
        window.take("[")
        with pytest.raises(ValueError, match="Expecting property name"):
            window.parse()
        assert len(window.text) <= 64


def test_bytes_that_are_not_utf8_are_in_the_record_that_has_them(tmp_path):
    path = tmp_path / "q.json"
    good = b'{"instruction": "good", "output": "x"}'
    path.write_bytes(b"[" + b", ".join([good] * 2000 + [b'{"instruction": "caf\xe9", "output": "x"}']) + b"]")
    with pytest.raises(InputError, match=r"q\.json:record 2001: record: expected values .* UTF-8"):
        read_alpaca("c", path, "x", tmp_path / "out")
