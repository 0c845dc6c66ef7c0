"""`make status` while a run goes on, and before there is anything to run."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
from killing import signal_session, start, wait_in_run
from running import ROOT, SCRIPTS, environment, merge, preloaded_environment

from distill.common.progress_file import FOLDER

STUDENT = "output/student_kd/banks"
TRAINING = "train_student/student_kd/banks"


def run_status(*arguments, **options):
    """Return what status.py prints."""
    command = ["python", SCRIPTS / "status.py", "--profile", "local", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        **{"cwd": ROOT, "env": preloaded_environment(), "text": True, "timeout": 600, **options},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def get_row(table, name):
    return next(line for line in table.splitlines() if line.split()[:1] == [name])


def test_a_training_that_is_held_is_shown_with_its_progress_and_once_killed_as_interrupted(finished, tmp_path):
    directory = finished.copy(tmp_path / "run")
    shutil.rmtree(directory / STUDENT)
    train = {"epochs": 2000, "save_steps": 100_000}  # minutes
    directory.configure(merge(directory.config, {"students": {"student_kd": {"train": train}}}))
    arguments = ["--configfile", directory.configfile, "--directory", directory.path]

    def count_steps():
        files = [json.loads(path.read_text()) for path in (directory / FOLDER).glob("*.json")]
        return sum(facts.get("done", 0) for facts in files if facts["log"] == f"logs/{TRAINING}.log")

    process = start(directory, f"{STUDENT}/model.safetensors")
    try:
        wait_in_run(process, lambda: count_steps() > 0)
        os.killpg(process.pid, signal.SIGSTOP)
        steps = count_steps()
        held = run_status(*arguments)
    finally:
        signal_session(process, signal.SIGKILL)
    killed = run_status(*arguments)

    assert "running 1" in get_row(held, "banks"), held
    assert "running" not in get_row(held, "households")
    row = get_row(held, TRAINING)
    found = re.search(r"training: (\d+) of (\d+) steps \(\d+%\)", row)
    assert found, held
    assert int(found[1]) == steps < int(found[2])
    assert re.search(r" \d+ tokens/s .* \d+ MiB .* process \d+, stopped by a signal$", row), row

    assert "running" not in get_row(killed, "banks")
    assert "interrupted; the next run resumes them:" in killed
    assert re.search(r" process \d+ is gone$", get_row(killed, TRAINING))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param("config", marks=SLOW), "demo", pytest.param("qa", marks=SLOW), "smollm2"]
)
def test_a_fresh_clone_shows_what_is_missing_or_to_do(tmp_path, name):
    """An empty working directory; the questions of qa and smollm2 come with the project."""
    if name in ("qa", "smollm2"):
        shutil.copytree(ROOT / "examples/questions", tmp_path / "examples/questions")
    table = run_status("--configfile", ROOT / f"config/{name}.yaml", "--directory", tmp_path)
    lines = table.splitlines()
    assert lines[0].startswith("Teacher: ")
    assert lines[1].startswith("category ")
    if name in ("config", "demo"):
        assert get_row(table, "banks").split() == [
            *("banks", "missing", "input"),
            *("artifacts/grpo/grpo_banks.jsonl,", "artifacts/sft/sft_train_banks.jsonl"),
        ]
        assert "No job can be planned: no category has its raw files." in table
        assert lines[-1].startswith(("models/", "Qwen/"))
    else:
        assert "to do" in lines[2]
        assert get_row(table, "report").split() == ["report", "to", "do"]


def test_an_error_in_the_configuration_is_still_an_error(tmp_path):
    (tmp_path / "config.yaml").write_text("categories: [banks]\nstudens: {}\n")
    command = ["python", SCRIPTS / "status.py", "--profile", "local", "--configfile", tmp_path / "config.yaml"]
    done = subprocess.run(
        list(map(str, [*command, "--directory", tmp_path])),
        cwd=ROOT,
        env=environment(),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert "studens" in done.stderr
    assert "Traceback" not in done.stderr


def test_watch_prints_again_until_ctrl_c(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    command = ["python", SCRIPTS / "status.py", "--profile", "local", "--watch", "0.2"]
    command += ["--configfile", directory.configfile, "--directory", directory.path]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = []
    while sum(", every 0.2 s until Ctrl-C" in line for line in shown) < 3:
        line = process.stdout.readline()
        assert line, shown
        shown.append(line)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert sum(line.startswith("banks ") for line in shown) == 2
