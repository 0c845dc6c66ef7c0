"""The file in which a job tells `make status` how far it is."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from running import run_python

from distill.common import progress_file
from distill.common.progress import Progress
from distill.common.progress_file import FOLDER, LOG_VARIABLE, ProgressFile, announce_job, find_log, read_process

LOG = "logs/generate_answers/banks.log"
JOB = """
import os, sys
from pathlib import Path
from distill.common.errors import InputError, run_script

def job():
    (path,) = Path(".snakemake/stillhouse/progress").glob("*.json")
    print(path.read_text())
    if sys.argv[2] == "fail":
        raise InputError("bad")

os.chdir(sys.argv[1])
os.dup2(os.open("logs/mix_records/banks.log", os.O_WRONLY | os.O_CREAT), 2)
run_script(job)
"""


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """The current folder is one in which Snakemake runs, and this process is one of its jobs."""
    (tmp_path / ".snakemake").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / LOG))
    return tmp_path


def read_files():
    return [json.loads(path.read_text()) for path in FOLDER.glob("*")]


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_a_script_has_a_file_while_it_runs_known_by_the_log_to_which_it_writes(tmp_path, end):
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "logs/mix_records").mkdir(parents=True)
    done = run_python(JOB, tmp_path, end)
    log = (tmp_path / "logs/mix_records/banks.log").read_text()
    assert done.returncode == (end == "fail"), log
    facts = json.loads(done.stdout)
    assert facts["log"] == "logs/mix_records/banks.log"
    assert facts["pid"] != os.getpid()
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert log == ("error: bad\n" if end == "fail" else "")


def test_a_file_names_process_and_machine(run_folder):
    with announce_job():
        (facts,) = read_files()
    assert (facts["log"], facts["pid"], facts["host"]) == (LOG, os.getpid(), os.uname().nodename)
    assert facts["start"] == read_process(os.getpid())[1]
    assert facts["boot"]
    assert facts["namespace"].startswith("pid:")
    assert read_files() == []


def test_progress_is_in_the_file_with_what_was_noted(run_folder, monkeypatch):
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_WRITES", 0.0)
    with announce_job():
        now = iter([100.0, *[110.0] * 9])
        progress = Progress(50, "teacher answers", done=10, memory=lambda: 812, clock=lambda: next(now))
        (first,) = read_files()
        progress.add(4, 100)
        progress.note(loss=2.5)
        (facts,) = read_files()
    assert (first["done"], first["total"], "tokens_per_second" in first) == (10, 50, False)
    names = ("what", "done", "total", "unit", "loss", "memory_mb")
    assert [facts[name] for name in names] == ["teacher answers", 14, 50, "records", 2.5, 812]
    assert (facts["tokens_per_second"], facts["units_per_second"]) == (10.0, 0.4)


def test_the_file_is_not_written_at_each_record(run_folder):
    with announce_job():
        progress = Progress(1000, "answers")
        for _ in range(999):
            progress.add(1)
        (early,) = read_files()
        progress.close()
        (last,) = read_files()
    assert early["done"] < 999
    assert last["done"] == 999


def test_only_the_first_process_of_a_job_in_a_folder_of_snakemake_writes(run_folder, monkeypatch):
    assert find_log() == Path(LOG)
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
        assert find_log() is None
        monkeypatch.setenv(name, "0")
    assert find_log() == Path(LOG)
    monkeypatch.setenv(LOG_VARIABLE, str(run_folder / "elsewhere/banks.log"))
    assert find_log() is None
    monkeypatch.setenv(LOG_VARIABLE, "/logs/banks.log")
    assert find_log() is None
    monkeypatch.setenv(LOG_VARIABLE, str(run_folder / LOG))
    (run_folder / ".snakemake").rmdir()
    with announce_job():
        Progress(10, "answers").add(1)
    assert not (run_folder / ".snakemake").exists()


def test_a_folder_that_cannot_be_written_does_not_matter(run_folder):
    (run_folder / ".snakemake/stillhouse").touch()  # so that the folder below cannot be made
    with announce_job():
        progress = Progress(10, "answers")
        progress.add(10)
        progress.close()
    assert progress.records == 10


def test_a_full_disk_does_not_matter_and_the_file_stays_whole(run_folder, monkeypatch):
    def write_half(path, text, **options):
        with open(path, "w") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_WRITES", 0.0)
    with announce_job():
        progress = Progress(10, "answers")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", write_half)
            progress.add(5)
        (facts,) = read_files()  # no other file is beside it
        progress.add(1)
        (later,) = read_files()
    assert (facts["done"], later["done"]) == (0, 6)


def test_the_heartbeat_goes_on_in_a_long_step(run_folder, monkeypatch):
    monkeypatch.setattr(progress_file, "HEARTBEAT_SECONDS", 0.01)
    with announce_job():
        (path,) = FOLDER.iterdir()
        os.utime(path, (0, 0))
        end = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_fork_neither_writes_nor_removes_the_file(run_folder, monkeypatch):
    monkeypatch.setattr(progress_file, "SECONDS_BETWEEN_WRITES", 0.0)
    file = ProgressFile(Path(LOG))
    file.open()
    monkeypatch.setattr(file, "pid", os.getpid() + 1)  # as in a child process
    assert not file.is_due()
    file.close()
    assert len(read_files()) == 1
    file.is_closed.set()


def test_a_process_of_the_job_that_took_the_file_over_removes_it_itself(run_folder):
    file = ProgressFile(Path(LOG))
    file.open()
    file.path.write_text(json.dumps({"pid": os.getpid() + 1}))
    file.close()
    assert len(read_files()) == 1
