"""A run that is killed at any instant goes on from where it was, and ends with the same result."""

import json
import os
import random
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from running import ONE_THREAD, ROOT, TEACHER, environment, read_lines
from safetensors.torch import load_file


def start(directory, target):
    """Start Snakemake in a session of its own, so that it and its jobs can be killed as one."""
    command = ["snakemake", "--profile", "local", *ONE_THREAD]
    command += ["--configfile", directory.configfile, "--directory", directory.path]
    return subprocess.Popen(
        list(map(str, [*command, target])),
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process, is_time, signal_number=signal.SIGKILL, seconds=300):
    """Signal the whole session as soon as `is_time()`, which has to come before its end."""
    end = time.monotonic() + seconds
    while not is_time():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "nothing was written to be killed after"
        time.sleep(0.01)
    os.killpg(process.pid, signal_number)
    process.wait(timeout=60)


def cached_lines(directory):
    return sum(path.read_bytes().count(b"\n") for path in directory.path.glob("artifacts/cache/teacher/*/*.jsonl"))


@pytest.fixture
def slow(finished, tmp_path):
    """The finished directory's settings, with answers that come one by one and a checkpoint at each step."""
    directory = finished.copy(tmp_path / "run")
    config = json.loads(json.dumps(directory.config))
    config["teacher"]["generation"] |= {"batch_size": 1, "max_new_tokens": 96}
    for student in config["students"].values():
        student["train"] |= {"epochs": 12, "save_steps": 1}
    directory.configure(config)
    return directory


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-C"])
def test_generation_goes_on_after_a_kill(slow, tmp_path, signal_number):
    target = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
    undisturbed = slow.copy(tmp_path / "undisturbed")
    before = cached_lines(slow)  # of other settings
    kill_when(start(slow, target), lambda: cached_lines(slow) >= before + 3, signal_number)
    assert before + 3 <= cached_lines(slow) < before + 33

    if signal_number == signal.SIGKILL:
        slow.run("--unlock")
    slow.run(target)
    undisturbed.run(target)
    assert read_lines(slow / target) == read_lines(undisturbed / target)
    stats = json.loads((slow / target.replace(".jsonl", ".stats.json")).read_text())
    assert stats["from_cache"] >= 3
    assert stats["from_cache"] + stats["generated"] == stats["prompts"] == 33


def kill_at(process, is_time, later):
    """Kill -9 the whole session `later` seconds after `is_time()`; whether it came to that before the run's end."""
    reached = None
    while process.poll() is None:
        reached = reached or (time.monotonic() if is_time() else None)
        if reached and time.monotonic() - reached >= later:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
            return True
        time.sleep(0.01)
    return False


def run_through(directory, target):
    """Seconds to the first answer, and an answer's from there on."""
    began = first = time.monotonic()
    process = start(directory, target)
    while process.poll() is None:
        first = first if cached_lines(directory) else time.monotonic()
        time.sleep(0.01)
    return first - began, (time.monotonic() - first) / cached_lines(directory)


def test_ten_kills_at_random_instants(fresh, tmp_path):
    """Some before the first answer, the others amid a batch of two; each costs the answers under way and no other."""
    target = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
    log = "logs/generate_answers/banks.log"
    directory = fresh.copy(tmp_path / "run")
    generation = {"temperature": 0, "batch_size": 2, "max_new_tokens": 256}
    mix = {"grpo_fraction": 1.0, "sft_fraction": 0.5}
    directory.configure(directory.config | {"teacher": TEACHER | {"generation": generation}, "mix": mix})
    undisturbed = directory.copy(tmp_path / "undisturbed")
    before_first, an_answer = run_through(undisturbed, target)

    instants, amid = random.Random(3), 0
    for _ in range(10):
        kept, answers = cached_lines(directory), instants.randrange(4)
        later = instants.random() * (2 * an_answer if answers else before_first)
        (directory / log).unlink(missing_ok=True)
        if not kill_at(start(directory, target), lambda: cached_lines(directory) >= kept + answers, later):  # noqa: B023
            break  # it came to its end on a machine that was slow at first
        assert not (directory / target).exists()
        amid += cached_lines(directory) > kept
        if (directory / log).exists() and (said := re.search(r"(\d+) in the cache", (directory / log).read_text())):
            assert int(said[1]) == kept  # all that was finished when it was killed
        directory.run("--unlock")
    assert amid >= 5

    kept = cached_lines(directory)
    directory.run(target)
    assert (directory / target).read_bytes() == (undisturbed / target).read_bytes()
    if kept < 50:
        stats = json.loads((directory / target.replace(".jsonl", ".stats.json")).read_text())
        assert (stats["prompts"], stats["from_cache"], stats["generated"]) == (50, kept, 50 - kept)
    assert cached_lines(directory) == 50  # whole lines: none was answered a second time


@pytest.mark.parametrize("student", ["student_kd", "student_seqkd"])
def test_training_goes_on_after_a_kill(slow, tmp_path, student):
    target = f"output/{student}/banks/model.safetensors"
    slow.run("artifacts/distill_data/processed/banks/train.jsonl")
    undisturbed = slow.copy(tmp_path / "undisturbed")

    def has_checkpoint():
        return any(slow.path.glob(f"artifacts/checkpoints/{student}/banks/*/checkpoint-*/trainer_state.json"))

    kill_when(start(slow, target), has_checkpoint)
    assert not (slow / target).exists()
    slow.run("--unlock")
    slow.run(target)
    assert "resuming from" in Path(slow / f"logs/train_student/{student}/banks.log").read_text()
    undisturbed.run(target)
    one, other = load_file(slow / target), load_file(undisturbed / target)
    assert all(one[name].equal(other[name]) for name in other)


def test_status_shows_what_is_done_and_why_not(finished, tmp_path):
    copy = finished.copy(tmp_path / "copy")
    raw = copy / "artifacts/sft/sft_train_banks.jsonl"
    raw.write_text(raw.read_text() + raw.read_text().splitlines()[0] + "\n")
    command = ["status.py", "--profile", "local", "--configfile", copy.configfile, "--directory", copy.path]
    done = subprocess.run(
        ["python", ROOT / "workflow/scripts" / command[0], *command[1:]],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "to do" in rows["banks"]
    assert "changed: artifacts/sft/sft_train_banks.jsonl" in rows["banks"]
    assert "to do" not in rows["households"]
    assert "missing input" in rows["pension_funds"]
    assert "artifacts/sft/sft_train_pension_funds.jsonl" in rows["pension_funds"]
    assert "to do" in rows["report"]
