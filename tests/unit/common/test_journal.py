"""Journals survive kills, torn lines, full disks and several writers."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
from running import SCRIPTS, run_python

from distill.common.journal import Journal, decode_record, encode_record, read_journal


def read(path):
    return list(read_journal(path, lambda record: record.get("n"), "a number"))


def append(path, *numbers):
    with Journal(path) as journal:
        journal.append({"n": number} for number in numbers)


def test_what_was_appended_is_read_back_in_order(tmp_path):
    path = tmp_path / "new/folder/journal.jsonl"
    append(path, 1, 2)
    append(path, 3)
    assert read(path) == [1, 2, 3]
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def test_a_missing_file_has_no_records(tmp_path):
    assert read(tmp_path / "journal.jsonl") == []


def test_a_torn_last_line_costs_itself_only(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    append(path, 1, 22)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        append(path, 3)
        assert read(path)[-1] == 3
        assert len(read(path)) >= whole[:cut].count(b"\n") + 1
        assert path.read_bytes().endswith(b'\n{"n": 3}\n' if cut else b'{"n": 3}\n')
    assert f"{path}: line 2: expected a number, found a torn or different line; skipped" in caplog.messages


@pytest.mark.parametrize(
    "line", [b"", b"garbage", b"\0" * 99, b"\xff", b"[" * 100_000, b"1" * 10_000, b"[]", b"null", b"{}"]
)
def test_a_line_that_is_no_record_is_skipped_with_one_warning(tmp_path, caplog, line):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1}\n' + (line + b"\n") * 8 + b'{"n": 2}\n')
    assert read(path) == [1, 2]
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: line 2, 3, 4, 5, 6, …: expected a number")


def test_half_a_surrogate_pair_is_replaced():
    assert decode_record(encode_record({"text": "\ud83d!↑"})) == {"text": "?!↑"}


def test_records_are_on_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size) or fsync(file))
    path = tmp_path / "journal.jsonl"
    append(path, 1, 2)
    assert synced == [path.stat().st_size]


def test_processes_that_append_to_one_file_lose_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = """
import sys
from pathlib import Path
from distill.common.journal import Journal
for part in range(10):
    with Journal(Path(sys.argv[1])) as journal:
        journal.append({"n": f"{sys.argv[2]}{part * 10 + number}", "text": "x" * 20_000} for number in range(10))
"""
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=SCRIPTS) for name in "abc"]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    found = read(path)
    assert len(found) == 300
    assert set(found) == {f"{name}{number}" for name in "abc" for number in range(100)}


def test_a_writer_that_is_killed_loses_no_record(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from distill.common.journal import Journal, encode_record
journal = Journal(Path(sys.argv[1]))
for number in range(100):
    journal.write(encode_record({"n": number, "text": "x" * 3000}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "journal.jsonl"
    assert run_python(code, path).returncode == -signal.SIGKILL
    assert read(path) == list(range(100))


def test_a_failed_write_names_the_file_and_its_torn_line_can_be_removed(tmp_path):
    path = tmp_path / "journal.jsonl"
    append(path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                journal.append([{"n": "x" * 100}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert path.read_bytes() == b'{"n": 1}\n{"n": "xxxx'
        journal.remove_torn_line()
        assert (journal.written, path.read_bytes()) == (0, b'{"n": 1}\n')
