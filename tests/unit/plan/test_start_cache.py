"""What starts of Snakemake keep for the next one: kept while the files and the code are the same."""

import json
import os
import shutil
import time

import pytest
from running import SCRIPTS

from distill.common.files import write_jsonl
from distill.plan import signals
from distill.plan.schema import check_config
from distill.plan.start_cache import StartCache, hash_code


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code/distill"
    folder.mkdir(parents=True)
    (folder / "one.py").write_text("x = 1\n")
    return folder.parent


@pytest.fixture
def start(tmp_path, code):
    """Return a function that starts anew and returns the value of a file, and whether it was computed."""

    def run(path):
        cache, computed = StartCache(tmp_path / "kept/start.json", code), []

        def compute():
            computed.append(path)
            return path.read_text() if path.exists() else None

        value = cache.get("text", compute, [path])
        assert cache.get("text", compute, [path]) == value
        cache.save()
        return value, bool(computed)

    return run


def write(path, text, age=60):
    """Write a file that changed some seconds ago as far as its times tell."""
    path.write_text(text)
    then = time.time() - age
    os.utime(path, (then, then))


@pytest.fixture
def settled(monkeypatch):
    """Take files as settled at once: the time of a file's last change of state cannot be set."""
    monkeypatch.setattr("distill.plan.start_cache.SETTLED_NS", -1)


@pytest.mark.usefixtures("settled")
def test_a_value_is_computed_once_for_one_state_of_its_files(tmp_path, start):
    path = tmp_path / "a.txt"
    assert [start(path), start(path)] == [(None, True), (None, False)]
    write(path, "one")
    assert [start(path), start(path)] == [("one", True), ("one", False)]
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time as before
    assert start(path) == ("two", True)
    other = tmp_path / "b.txt"
    shutil.copy2(path, other)
    other.replace(path)  # as rsync does
    assert start(path) == ("two", True)


def test_a_file_that_has_just_changed_is_read_again(tmp_path, start):
    path = tmp_path / "a.txt"
    path.write_text("one")
    assert [start(path), start(path)] == [("one", True), ("one", True)]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["edit", "add", "rename", "remove"])
def test_a_change_of_code_empties_the_cache(tmp_path, code, start, change):
    path, module = tmp_path / "a.txt", code / "distill/one.py"
    write(path, "one")
    assert [start(path), start(path)] == [("one", True), ("one", False)]
    if change == "edit":
        module.write_text("x = 2\n")
    elif change == "add":
        (code / "two.py").touch()
    elif change == "rename":
        module.rename(code / "distill/two.py")
    else:
        module.unlink()
    assert start(path) == ("one", True)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"entries": {}}'])
def test_a_damaged_cache_is_made_again(tmp_path, start, content):
    path = tmp_path / "a.txt"
    write(path, "one")
    start(path)
    kept = tmp_path / "kept/start.json"
    assert json.loads(kept.read_text())["entries"]
    kept.write_text(content)
    assert [start(path), start(path)] == [("one", True), ("one", False)]
    assert list(kept.parent.iterdir()) == [kept]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, code):
    (tmp_path / "file").touch()
    cache = StartCache(tmp_path / "file/start.json", code)
    assert cache.get("a", lambda: 1) == 1
    cache.save()
    assert StartCache(tmp_path / "file/start.json", code).get("a", lambda: 2) == 2


def test_the_hash_covers_scripts_and_library(tmp_path):
    copy = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert hash_code(copy) == hash_code()
    for name in ("train_student.py", "distill/student/loss.py"):
        before = hash_code(copy)
        (copy / name).write_text("")
        assert hash_code(copy) != before


@pytest.mark.usefixtures("settled")
def test_prompts_are_counted_once(tmp_path, monkeypatch):
    """The lines that describe a signal are those of a count, and new prompts are counted."""
    monkeypatch.chdir(tmp_path)
    config = check_config(
        {
            "categories": ["banks"],
            "teacher": {"model": "models/teacher"},
            "students": {"one": {"model": "models/student", "signal": "hidden"}},
        }
    )
    (tmp_path / "models/teacher").mkdir(parents=True)
    (tmp_path / "models/teacher/config.json").write_text('{"hidden_size": 8, "vocab_size": 10}')
    prompts = tmp_path / "artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl"
    found = []
    for count in (10, 10, 20):
        if not found or count == 20:
            records = [{"uid": f"{number:032x}", "system": "", "prompt": f"q{number}"} for number in range(count)]
            write_jsonl(prompts, records)
        cache = StartCache()
        (line, *_) = signals.describe_signals(config, ["banks"], cache)
        found.append((line.split("at most ")[1].split(" tokens")[0], cache.is_changed))
        cache.save()
    assert [is_changed for _, is_changed in found] == [True, False, True]
    assert found[0][0] == found[1][0] != found[2][0]
