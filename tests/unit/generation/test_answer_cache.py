"""The answer cache survives kills, torn lines, full disks and several writers."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import SCRIPTS, run_python

from distill.common import journal
from distill.common.errors import InputError
from distill.generation import answer_cache as cache
from distill.generation.answer_cache import DESCRIPTION, CacheWriter, iterate_answers, read_cache


def answer(uid, sample=0, **changes):
    text = f"−0.1 für {uid}#{sample}"
    kept = {"uid": uid, "sample": sample, "raw_output": text, "finish_reason": "stop"}
    return kept | {"generated_tokens": 3, "prompt_tokens": 5} | changes


def by_key(*answers):
    return {(one["uid"], one["sample"]): one for one in answers}


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))


def test_what_was_added_is_read_back(tmp_path):
    with CacheWriter(tmp_path / "new" / "folder") as writer:
        writer.add([answer("a"), answer("b", 2)])
        # The writer is still open: a kill from here on loses nothing.
        found = read_cache(tmp_path / "new" / "folder")
    assert found == by_key(answer("a"), answer("b", 2))
    assert len(found) == 2
    assert ("a", 0) in found
    assert ("a", 1) not in found


def test_only_the_prompts_that_are_asked_for_are_kept(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.add([answer("a"), answer("a", 1), answer("b")])
    assert read_cache(tmp_path, {"a", "c"}) == by_key(answer("a"), answer("a", 1))


def test_lines_of_the_version_before_are_samples_number_0(tmp_path):
    old = {name: value for name, value in answer("a").items() if name not in ("sample", "prompt_tokens")}
    write(tmp_path / "host-1-abc.jsonl", old)
    assert read_cache(tmp_path) == by_key(answer("a", prompt_tokens=0))


def test_cut_characters_of_earlier_versions_are_left_out(tmp_path):
    cut = answer("a", raw_output="me\ufffd", finish_reason="length")
    ended = answer("b", raw_output="me\ufffd")
    write(tmp_path / "host-1-abc.jsonl", cut, ended)
    assert read_cache(tmp_path) == by_key(cut | {"raw_output": "me"}, ended)


def test_a_torn_line_costs_itself_only(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.add([answer("a"), answer("b")])
    whole = writer.path.read_bytes()
    for cut in range(1, len(whole)):
        writer.path.write_bytes(whole[:cut])
        found = read_cache(tmp_path)
        assert set(found) <= {("a", 0), ("b", 0)}
        assert all(found[key] == answer(*key) for key in found)
        assert len(found) >= whole[:cut].count(b"\n")


@pytest.mark.parametrize(
    "bad",
    [
        b"\n",
        b"garbage\n",
        b"\0" * 4096,
        b"\0" * 50 + b"\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"1" * 10_000 + b"\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        *(
            json.dumps({name: value for name, value in answer("x").items() if name != missing}).encode() + b"\n"
            for missing in ("uid", "raw_output", "finish_reason", "generated_tokens")
        ),
        *(
            json.dumps(answer("x") | {name: None}).encode() + b"\n"
            for name in ("uid", "sample", "raw_output", "generated_tokens")
        ),
    ],
)
def test_what_is_no_answer_is_passed_over_with_file_and_line(tmp_path, caplog, bad):
    write(tmp_path / "one.jsonl", answer("a"), answer("b"), bad)
    write(tmp_path / "two.jsonl", answer("c"))
    assert set(read_cache(tmp_path)) == {("a", 0), ("b", 0), ("c", 0)}
    (warning,) = caplog.messages
    assert f"{tmp_path / 'one.jsonl'}: line 3: expected an answer" in warning
    assert warning.endswith("skipped")


def test_answers_after_a_bad_line_count_and_many_bad_ones_are_told_once(tmp_path, caplog):
    write(tmp_path / "one.jsonl", *[b"garbage\n"] * 8, answer("a"))
    assert read_cache(tmp_path) == by_key(answer("a"))
    (warning,) = caplog.messages
    assert "one.jsonl: line 1, 2, 3, 4, 5, …: expected an answer" in warning


def test_the_first_answer_wins(tmp_path):
    write(tmp_path / "20260101T050000-alpha-1-0a.jsonl", answer("a", raw_output="second"))
    write(
        tmp_path / "20260101T000000-zeta-9-0b.jsonl", answer("a", raw_output="first"), answer("a", raw_output="third")
    )
    assert read_cache(tmp_path)["a", 0]["raw_output"] == "first"
    assert [one["raw_output"] for one in iterate_answers(tmp_path)] == ["first", "third", "second"]
    assert re.match(r"20\d{6}T\d{6}-", CacheWriter(tmp_path).path.name)


def test_half_a_surrogate_pair_breaks_nothing(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.add([answer("a", raw_output="\ud83d!")])
    assert read_cache(tmp_path)["a", 0]["raw_output"] == "?!"


@pytest.mark.parametrize(
    "changes",
    [{"generated_tokens": 3.5}, {"prompt_tokens": 5.0}, {"raw_output": None}, {"sample": "0"}, {"uid": 3}],
    ids=str,
)
def test_what_would_not_be_read_back_is_not_written(tmp_path, changes):
    """Otherwise every run would generate it, pay for it and skip it again."""
    with CacheWriter(tmp_path) as writer:
        writer.add([answer("a")])
        with pytest.raises(ValueError, match="expected an answer that can be read back, found {'uid': "):
            writer.add([answer("b") | changes])
    assert read_cache(tmp_path) == by_key(answer("a"))


def test_two_writers_do_not_meet(tmp_path):
    with CacheWriter(tmp_path) as one, CacheWriter(tmp_path) as other:
        one.add([answer("a")])
        other.add([answer("b")])
        one.add([answer("c")])
    assert set(read_cache(tmp_path)) == {("a", 0), ("b", 0), ("c", 0)}


def test_processes_that_write_and_read_at_the_same_time_lose_nothing(tmp_path):
    code = """
import sys
from pathlib import Path
from distill.generation.answer_cache import CacheWriter, read_cache
folder, name = Path(sys.argv[1]), sys.argv[2]
for part in range(4):
    with CacheWriter(folder, {"model": name}) as writer:
        for number in range(part * 50, part * 50 + 50):
            kept = {"uid": f"{name}{number}", "sample": 0, "raw_output": name * 5000, "finish_reason": "stop"}
            writer.add([kept | {"generated_tokens": 1, "prompt_tokens": 1}])
            if number % 10 == 9:
                found = read_cache(folder)
                mine = sum(uid.startswith(name) for uid, _ in found)
                assert mine == number + 1, (mine, number)
                assert all(one["raw_output"] == uid[0] * 5000 for (uid, _), one in found.items())
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    jobs = [subprocess.Popen([*command, name], cwd=SCRIPTS, stderr=subprocess.PIPE, text=True) for name in "abc"]
    errors = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors
    assert set(read_cache(tmp_path)) == {(f"{name}{number}", 0) for name in "abc" for number in range(200)}
    assert len(list(tmp_path.glob("*.jsonl"))) == 12
    assert json.loads((tmp_path / DESCRIPTION).read_text())["model"] in "abc"
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".json"}


def test_a_writer_that_is_killed_loses_no_answer_it_has_added(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from distill.generation.answer_cache import CacheWriter
with CacheWriter(Path(sys.argv[1])) as writer:
    for number in range(100):
        kept = {"uid": str(number), "sample": 0, "raw_output": "x" * 3000, "finish_reason": "stop"}
        writer.add([kept | {"generated_tokens": 1, "prompt_tokens": 1}])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    assert set(read_cache(tmp_path)) == {(str(number), 0) for number in range(100)}


def test_answers_one_by_one_do_not_wait_for_the_disk_each(tmp_path, monkeypatch):
    synced, now = [], [100.0]
    fsync = os.fsync
    monkeypatch.setattr(journal.os, "fsync", lambda file: synced.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    with CacheWriter(tmp_path) as writer:
        for number in range(30):  # ten a second
            writer.add([answer(str(number))])
            now[0] += 0.1
        assert len(synced) == 3
    assert len(synced) == 4
    assert synced[-1] == writer.path.stat().st_size
    assert len(read_cache(tmp_path)) == 30


def test_a_writer_without_answers_leaves_no_file(tmp_path):
    with CacheWriter(tmp_path):
        read_cache(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_goes_while_it_is_looked_for_holds_nothing(tmp_path, monkeypatch):
    """A job that ends without an answer removes its file."""
    write(tmp_path / "one.jsonl", answer("a"))
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*glob(self, pattern), self / "gone.jsonl"])
    assert set(read_cache(tmp_path)) == {("a", 0)}


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert read_cache(tmp_path / "absent") == {}


def test_the_description_is_written_once_and_is_no_answer(tmp_path):
    for model in ("one", "other"):
        with CacheWriter(tmp_path, {"model": model, "sampling": {"temperature": 0.7}}) as writer:
            writer.add([answer(model)])
    assert json.loads((tmp_path / DESCRIPTION).read_text()) == {"model": "one", "sampling": {"temperature": 0.7}}
    assert len(read_cache(tmp_path)) == 2
    assert len(os.listdir(tmp_path)) == 3


FILL = """
import resource, signal, sys
from pathlib import Path
from distill.generation.answer_cache import CacheWriter
from distill.common.errors import run_script
def main():
    folder = Path(sys.argv[1])
    with CacheWriter(folder, {"model": "m"}) as writer:
        if len(sys.argv) > 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        kept = {"sample": 0, "raw_output": "−" * 1000, "finish_reason": "stop", "generated_tokens": 1}
        writer.add([{"uid": str(number), "prompt_tokens": 1} | kept for number in range(40)])
        for number in range(40, 80):
            writer.add([{"uid": str(number), "prompt_tokens": 1} | kept])
run_script(main)
"""


@pytest.mark.parametrize("limit", [50, 10_000, 100_000, 150_001])
def test_a_file_that_may_not_grow_keeps_its_whole_lines(tmp_path, limit):
    done = run_python(FILL, tmp_path, limit)
    (path,) = tmp_path.glob("*.jsonl") if limit > 50 else [None]
    found = read_cache(tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}: cannot store a teacher answer: File too large" in done.stderr
    assert "ulimit -f" in done.stderr
    assert "rerun the same command to resume" in done.stderr
    if path is None:
        assert "has no answer yet" in done.stderr
        return
    assert f"{len(found)} of this job's answers are stored in {path}" in done.stderr
    assert set(found) == {(str(number), 0) for number in range(len(found))}
    assert len(found) == limit // (path.stat().st_size // len(found))
    assert path.read_bytes().endswith(b"}\n")
    # The same command again, without the limit.
    assert run_python(FILL, tmp_path).returncode == 0
    assert len(read_cache(tmp_path)) == 80


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told(tmp_path):
    writer = CacheWriter(tmp_path)
    writer.path.symlink_to("/dev/full")
    with (
        pytest.raises(InputError, match=r"No space left on device\n.*has no answer yet; free space on its disk"),
        writer,
    ):
        writer.add([answer("a")])


def test_a_full_disk_in_real(tmp_path):
    """Fill a file system of 256 KiB, if this machine lets a user mount one."""
    mounted = f"mount -t tmpfs -o size=256k none {tmp_path} && "
    script = (
        mounted
        + f"{{ '{sys.executable}' -c \"$0\" {tmp_path}; echo; ls {tmp_path}; cat {tmp_path}/*.jsonl | tail -c 3; }}"
    )
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted + "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    code = FILL.replace("range(40, 80)", "range(40, 200)")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, code], cwd=SCRIPTS, capture_output=True, text=True)
    assert "cannot store a teacher answer: No space left on device" in done.stderr
    assert "answers are stored in" in done.stderr
    assert "free space on its disk and rerun the same command" in done.stderr
    assert done.stdout.endswith("1}\n")


def test_what_the_disk_refuses_late_is_not_called_kept(tmp_path, monkeypatch):
    now, refused = [0.0], OSError(28, "No space left on device")
    fsync = os.fsync

    def refuse(file):
        if now[0]:
            raise refused
        fsync(file)

    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(journal.os, "fsync", refuse)
    with CacheWriter(tmp_path) as writer:
        writer.add([answer("a"), answer("b")])
        now[0] += 2.0
        with pytest.raises(InputError, match="No space left on device\n2 of this job's answers are stored"):
            writer.add([answer("c")])
        now[0] = 0.0
    assert writer.journal.file.closed


def test_an_error_of_the_engine_is_not_hidden_by_one_of_the_disk(tmp_path, monkeypatch, caplog):
    def run():
        with CacheWriter(tmp_path) as writer:
            writer.add([answer("a")])
            writer.add([answer("b")])
            monkeypatch.setattr(
                journal.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error"))
            )
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        run()
    assert "Input/output error" in caplog.text
    assert len(read_cache(tmp_path)) == 2


def test_a_folder_that_cannot_be_is_told_before_anything_is_asked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot store a teacher answer: "):
        CacheWriter(tmp_path / "file" / "folder").__enter__()


def test_no_warning_where_all_is_well(tmp_path, caplog):
    with caplog.at_level(logging.INFO), CacheWriter(tmp_path, {"model": "m"}) as writer:
        writer.add([answer("a")])
    read_cache(tmp_path)
    assert caplog.messages == []
