"""Files: atomic writes, escaped lines, and errors that name file and line."""

import json
import os
import random
import subprocess
import sys

import pytest
from running import SCRIPTS, run_python

from distill.common.errors import MOST_SHOWN, InputError, describe, format_problem, raise_problems
from distill.common.files import (
    BOM,
    escape_line,
    read_jsonl,
    replace_directory,
    unescape_line,
    write_atomically,
    write_json,
    write_jsonl,
)

AWKWARD = [
    "\\",
    "\n",
    "\r",
    "\\n",
    "\\\\r",
    "n",
    "r",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "−",
    "é",
    "😀",
    "\0",
    " ",
    "",
]


def test_escape_survives_any_text():
    draw = random.Random(7)
    for _ in range(2000):
        text = "".join(draw.choices(AWKWARD, k=draw.randrange(12)))
        line = escape_line(text)
        assert "\n" not in line
        assert "\r" not in line
        assert unescape_line(line) == text


def test_escape_writes_what_the_format_says():
    assert escape_line("a\\b\nc\rd") == r"a\\b\nc\rd"
    assert escape_line("a\x0b\x85\u2028b") == r"a\u000b\u0085\u2028b"


def test_an_escaped_text_is_one_line_for_every_reader():
    texts = [f"a{chr(code)}b" for code in range(0x3000)]
    assert "\n".join(map(escape_line, texts)).splitlines() == list(map(escape_line, texts))
    assert [unescape_line(escape_line(text)) for text in texts] == texts


def test_lines_of_earlier_versions_are_read():
    assert unescape_line("a\u2028b\x85") == "a\u2028b\x85"


@pytest.mark.parametrize("line", ["\\", "a\\t", "\\\\\\", "\\u20", "\\u20g8"])
def test_stray_backslash_is_rejected(line):
    with pytest.raises(ValueError, match="stray backslash"):
        unescape_line(line)


def test_jsonl_round_trip_keeps_line_separators_inside_records(tmp_path):
    records = [{"text": "a\u2028b\u2029c\x85d\ne"}, {"text": "−0.5 ↓"}]
    assert write_jsonl(tmp_path / "a.jsonl", iter(records)) == 2
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, records[0]), (2, records[1])]
    assert "−0.5 ↓".encode() in (tmp_path / "a.jsonl").read_bytes()


def test_bom_blank_lines_and_crlf_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BOM + b'{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"a": "\xff\xfe"}', "UTF-8 text (byte 8 of the line is not)"),
        (b'{"a": }', "a JSON object (Expecting value at column 7)"),
        (b"[1, 2]", "a JSON object, found [1, 2]"),
        (b'{"a": 1', "a JSON object"),
    ],
)
def test_bad_line_is_named(tmp_path, raw, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"a": 1}\n' + raw + b"\n")
    with pytest.raises(InputError) as error:
        list(read_jsonl(path))
    assert str(error.value).startswith(f"{path}:2: line: expected ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ('{"a": 0.1, "b": 2, "a": 0.5}', "a: expected the key once in its object, found [0.1, 0.5]"),
        ('{"a": 1, "a": 1}', "a: expected the key once in its object, found [1, 1]"),
        ('{"m": [{"role": "user", "content": "x", "role": "system"}]}', "role: expected the key once in its object"),
        ('{"a": 1, "\\u0061": 2}', "a: expected the key once in its object, found [1, 2]"),
    ],
)
def test_a_key_that_comes_twice_is_named(tmp_path, raw, said):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": {"a": 1}, "b": {"a": 2}}\n' + raw + "\n")
    with pytest.raises(InputError) as error:
        list(read_jsonl(path))
    assert str(error.value).startswith(f"{path}:2: {said}")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with write_atomically(path) as file:
        file.write("old")

    def fail() -> None:
        with write_atomically(path) as file:
            file.write("half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    code = (
        "import os, sys; from distill.common.files import write_atomically\n"
        "with write_atomically(sys.argv[1]) as file:\n"
        "    file.write('x' * 100000); file.flush(); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], env={"PYTHONPATH": str(SCRIPTS)}, check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_the_error_of_a_full_disk_names_the_file(tmp_path):
    code = """
import resource, signal, sys
from distill.common.errors import run_script
from distill.common.files import write_jsonl
def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    write_jsonl(sys.argv[1], ({"text": "x" * 1000} for _ in range(200)))
run_script(main)
"""
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    done = run_python(code, path)
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: File too large\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_an_unrelated_error_does_not_name_the_file(tmp_path):
    with pytest.raises(ConnectionResetError) as caught, write_atomically(tmp_path / "a.txt"):
        raise ConnectionResetError(104, "Connection reset by peer")
    assert caught.value.filename is None


@pytest.mark.parametrize(
    "write", [lambda p: write_json(p, {"a": float("nan")}), lambda p: write_jsonl(p, [{"a": 1e999}])]
)
def test_nan_is_never_written(tmp_path, write):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_write_json_ends_with_a_line_feed(tmp_path):
    write_json(tmp_path / "a.json", {"a": "↓"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": "↓"}
    assert text.endswith("}\n")


def test_directory_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with replace_directory(target) as folder:
        (folder / "a").write_text("1")

    def fail() -> None:
        with replace_directory(target) as folder:
            (folder / "b").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(target) == ["a"]
    with replace_directory(target) as folder:
        (folder / "c").write_text("3")
    assert os.listdir(target) == ["c"]
    assert os.listdir(tmp_path) == ["model"]


def test_problems_are_raised_together_and_cut():
    raise_problems([])
    with pytest.raises(InputError, match="1 problem in the input") as error:
        raise_problems(["a: wrong"])
    assert "  a: wrong" in str(error.value)
    with pytest.raises(InputError) as error:
        raise_problems([f"p{i}" for i in range(MOST_SHOWN + 5)], "records")
    assert "25 problems in the records" in str(error.value)
    assert "and 5 more" in str(error.value)
    assert f"p{MOST_SHOWN}" not in str(error.value)


def test_problem_names_file_line_field():
    assert format_problem("f.jsonl", 3, "label", "a number", "x") == "f.jsonl:3: label: expected a number, found 'x'"
    assert len(describe("x" * 500)) == 60


def test_script_ends_on_bad_input_without_traceback():
    main = "def main():\n    raise InputError('f:1: wrong')\n"
    code = f"from distill.common.errors import InputError, run_script\n{main}run_script(main)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: f:1: wrong\n"


def test_leftovers_of_killed_jobs_are_removed(tmp_path):
    (tmp_path / ".student.123.tmp").mkdir()
    (tmp_path / ".student.123.tmp" / "model.safetensors").write_text("half")
    (tmp_path / ".student.123.old").mkdir()
    (tmp_path / ".lines.jsonl.9.tmp").write_text("half")
    (tmp_path / ".other.9.tmp").write_text("another job's")
    with replace_directory(tmp_path / "student") as folder:
        (folder / "config.json").write_text("{}")
    write_jsonl(tmp_path / "lines.jsonl", [{"a": 1}])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.9.tmp", "lines.jsonl", "student"]


def test_the_old_folder_survives_a_rename_that_fails(tmp_path, monkeypatch):
    target = tmp_path / "student"
    target.mkdir()
    (target / "model.safetensors").write_text("old")
    replace = os.replace

    def fail_to_publish(source, destination):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error", str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_to_publish)
    with pytest.raises(OSError, match="Input/output"), replace_directory(target) as folder:
        (folder / "model.safetensors").write_text("new")
    assert (target / "model.safetensors").read_text() == "old"
    assert os.listdir(tmp_path) == ["student"]
