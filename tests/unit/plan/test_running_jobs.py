"""Which jobs are running, and what the table shows of them."""

import json
import os
import signal
import subprocess
import time

import pytest

from distill.common.progress_file import FOLDER, identify_machine, read_process
from distill.plan.running_jobs import SILENCE_SECONDS, FoundJob, find_jobs, judge_job, read_last_line, render_jobs

LOG = "logs/train_student/student_kd/banks.log"
FIGURES = {"what": "training", "done": 30, "total": 120, "unit": "steps", "seconds_left": 780.0}


@pytest.fixture
def process():
    """Another process, which does nothing."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def describe_process(pid):
    return {"pid": pid, "start": read_process(pid)[1], **identify_machine()}


def wait_for_state(pid, states):
    end = time.monotonic() + 60
    while (found := read_process(pid)) is None or found[0] not in states:
        assert time.monotonic() < end
        time.sleep(0.01)


def write_file(directory, log, age=0.0, **facts):
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.json"
    now = time.time()
    path.write_text(json.dumps({"log": log, "started": now - 60, "time": now} | facts))
    os.utime(path, (now - age, now - age))


def test_a_process_of_this_machine_runs_until_it_is_gone_whatever_the_age_of_its_file(process):
    facts = describe_process(process.pid)
    assert judge_job(facts, silence=1e6) == (True, f"process {process.pid}")
    process.send_signal(signal.SIGSTOP)
    wait_for_state(process.pid, "T")
    assert judge_job(facts, silence=0) == (True, f"process {process.pid}, stopped by a signal")
    process.kill()
    wait_for_state(process.pid, "Z")
    gone = (False, f"process {process.pid} is gone")
    assert judge_job(facts, silence=0) == gone
    process.wait()
    assert judge_job(facts, silence=0) == gone


def test_a_later_process_with_the_same_number_is_not_the_job(process):
    facts = describe_process(process.pid)
    assert judge_job(facts | {"start": facts["start"] - 1}, silence=0) == (False, f"process {process.pid} is gone")


@pytest.mark.parametrize("other", ["boot", "namespace"])
def test_on_another_machine_or_in_a_container_the_heartbeat_counts(other):
    facts = describe_process(os.getpid()) | {"host": "n7", other: "another"}
    assert judge_job(facts, silence=12.4) == (True, f"process {os.getpid()} on n7, seen 12 s ago")
    lost = judge_job(facts, silence=SILENCE_SECONDS + 1000)
    assert lost == (False, f"no sign of process {os.getpid()} on n7 for 19 min")


def test_files_are_read_in_the_order_of_their_start_and_broken_ones_ignored(tmp_path):
    here = describe_process(os.getpid())
    write_file(tmp_path, LOG, **here)
    write_file(tmp_path, "logs/mix_records/banks.log", **here | {"started": 1.0})
    write_file(
        tmp_path, "logs/split_answers/banks.log", age=3600, **here | {"host": "n7", "boot": "another", "started": 2.0}
    )
    (tmp_path / FOLDER / "broken.json").write_text("{")
    (tmp_path / FOLDER / "other.json").write_text("[]")
    jobs = find_jobs(tmp_path)
    assert [(job.name, job.is_running) for job in jobs] == [
        ("mix_records/banks", True),
        ("split_answers/banks", False),
        ("train_student/student_kd/banks", True),
    ]
    assert find_jobs(tmp_path / "none") == []


def make_job(log=LOG, is_running=True, where="process 7", message="", **figures):
    now = time.time()
    return FoundJob(log, is_running, where, {"started": now - 240, "time": now} | figures, message)


def test_a_training_is_shown_with_speed_time_left_memory_and_loss():
    figures = FIGURES | {"tokens_per_second": 3104.4, "memory_mb": 812, "loss": 2.30851, "val_loss": 2.4}
    head, row = render_jobs([make_job(**figures)], set()).splitlines()
    assert head.split("  ")[0] == "running"
    assert [part.strip() for part in row.split("  ") if part.strip()] == [
        "train_student/student_kd/banks",
        "training: 30 of 120 steps (25%)",
        "3104 tokens/s",
        "13 min",
        "812 MiB",
        "2.309, validation 2.4",
        "4 min",
        "process 7",
    ]
    assert head.index("progress") == row.index("training:")
    assert head.index("loss") == row.index("2.309")


def test_counts_without_tokens_have_a_speed_of_their_own_unit_and_columns_without_content_are_left_out():
    fast, slow = make_job(**FIGURES, units_per_second=12.34), make_job(**FIGURES, units_per_second=0.05)
    head, *rows = render_jobs([fast, slow], set()).splitlines()
    assert "12.3 steps/s" in rows[0]
    assert "3.0 steps/min" in rows[1]
    assert head.split() == ["running", "progress", "speed", "left", "for", "where"]


def test_old_figures_are_shown_with_their_age():
    row = render_jobs([make_job(**FIGURES | {"time": time.time() - 600})], set())
    assert "30 of 120 steps (25%), 10 min ago" in row


def test_a_job_without_figures_is_shown_with_the_last_line_of_its_log(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("x\n" * 9000 + "2026-11-28 14:00:00 loading the student\n\n")
    assert read_last_line(log) == "loading the student"
    assert read_last_line(tmp_path / "none.log") == ""
    assert "loading the student" in render_jobs([make_job(message="loading the student")], set())


def test_interrupted_jobs_are_shown_only_while_they_are_to_do():
    job = make_job(is_running=False, where="process 7 is gone", **FIGURES)
    assert render_jobs([job], set()) == ""
    lines = render_jobs([job], {LOG}).splitlines()
    assert lines == [
        "interrupted; the next run resumes them:",
        "  train_student/student_kd/banks  process 7 is gone",
    ]
