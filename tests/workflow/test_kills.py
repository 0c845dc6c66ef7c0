"""A run that is killed resumes where it stopped, and ends with the result of an undisturbed run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path
from time import monotonic, sleep

import pytest
from killing import count_cached, kill_later, kill_when, start, wait_in_run
from running import ROOT, TEACHER, environment, merge, read_lines
from safetensors.torch import load_file

ANSWERS = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
SIGNAL = "artifacts/distill_data/teacher_signal/banks/topk_8_t2/data/*/*.safetensors"
STATS = "artifacts/distill_data/raw/teacher_outputs_banks.stats.json"


@pytest.fixture
def directory(finished, tmp_path):
    """A finished run, set to generate one answer at a time and to save a checkpoint at each step.

    Neither setting changes a result, so a repeated step is comparable with the finished run.
    """
    directory = finished.copy(tmp_path / "run")
    train = {"students": {name: {"train": {"save_steps": 1}} for name in directory.config["students"]}}
    directory.configure(merge(directory.config, train | {"teacher": {"generation": {"batch_size": 1}}}))
    return directory


@pytest.mark.parametrize(
    "signal_number",
    [pytest.param(signal.SIGKILL, id="kill -9"), pytest.param(signal.SIGINT, id="ctrl-C", marks=pytest.mark.slow)],
)
def test_generation_resumes_after_a_kill(finished, directory, signal_number):
    shutil.rmtree(directory / "artifacts/cache/teacher")
    (directory / ANSWERS).unlink()
    kill_when(start(directory, ANSWERS), lambda: count_cached(directory) >= 3, signal_number)
    assert 3 <= count_cached(directory) < 33
    assert not (directory / ANSWERS).exists()

    if signal_number == signal.SIGKILL:
        directory.run("--unlock")
    directory.run(ANSWERS)
    assert read_lines(directory / ANSWERS) == read_lines(finished / ANSWERS)
    stats = json.loads((directory / STATS).read_text())
    assert stats["from_cache"] >= 3
    assert stats["from_cache"] + stats["generated"] == stats["prompts"] == 33


@pytest.mark.slow
def test_a_second_run_in_the_same_directory_is_refused_and_the_first_one_goes_on(finished, directory):
    shutil.rmtree(directory / "artifacts/cache/teacher")
    (directory / ANSWERS).unlink()
    process = start(directory, ANSWERS)
    wait_in_run(process, lambda: count_cached(directory))
    os.killpg(process.pid, signal.SIGSTOP)  # The first run must not end before the second one has begun.
    assert "cannot be locked" in directory.run(ANSWERS, check=False)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(timeout=120) == 0
    assert read_lines(directory / ANSWERS) == read_lines(finished / ANSWERS)


@pytest.mark.parametrize("student", ["student_kd", pytest.param("student_seqkd", marks=pytest.mark.slow)])
def test_training_resumes_after_a_kill(finished, directory, student):
    target = f"output/{student}/banks/model.safetensors"
    shutil.rmtree((directory / target).parent)

    def has_checkpoint():
        return any(directory.path.glob(f"artifacts/checkpoints/{student}/banks/*/checkpoint-*/trainer_state.json"))

    kill_when(start(directory, target), has_checkpoint)
    assert not (directory / target).exists()
    directory.run("--unlock")
    directory.run(target)
    assert "resuming from" in Path(directory / f"logs/train_student/{student}/banks.log").read_text()
    one, other = load_file(directory / target), load_file(finished / target)
    assert all(one[name].equal(other[name]) for name in other)


@pytest.mark.slow
def test_signals_scores_and_comparisons_are_whole_after_kills_in_each_step(finished, directory, tmp_path):
    """Each step is killed as soon as its job has begun. The next run ends with the files of an undisturbed one."""
    kd = directory.config["students"]["student_kd"]
    students = directory.config["students"] | {"student_kd": kd | {"signal": "topk", "top_k": 8}}
    directory.configure(directory.config | {"students": students, "categories": ["banks"]})
    undisturbed = directory.copy(tmp_path / "undisturbed")
    target = "output/report/comparisons.csv"
    undisturbed.run(target)
    for rule in ("compute_signal/banks.topk_8_t2", "score_predictions/student_kd/banks", "compare_models"):
        (log := directory / f"logs/{rule}.log").unlink(missing_ok=True)
        kill_when(start(directory, target), log.exists)
        # Snakemake removes the outputs of a job before the job begins.
        left = [path.read_bytes() for path in (directory / target,) if path.exists()]
        assert left == ([] if rule == "compare_models" else [(finished / target).read_bytes()])
        directory.run("--unlock")
    directory.run(target)
    for path in (target, "output/evaluation/student_kd/banks.metrics.json"):
        assert (directory / path).read_bytes() == (undisturbed / path).read_bytes()
        assert (directory / path).read_bytes() != (finished / path).read_bytes()
    files = [path.relative_to(undisturbed.path) for path in undisturbed.path.glob(SIGNAL)]
    assert files
    for path in files:
        one, other = load_file(directory / path), load_file(undisturbed / path)
        assert all(one[name].equal(other[name]) for name in other)


def run_undisturbed(directory):
    """Run up to the answers; return the seconds before the first answer, and the seconds of each answer after it."""
    began = first = monotonic()
    process = start(directory, ANSWERS)
    while process.poll() is None:
        first = first if count_cached(directory) else monotonic()
        sleep(0.01)
    return first - began, (monotonic() - first) / count_cached(directory)


@pytest.mark.slow
def test_ten_kills_at_random_instants(fresh, tmp_path):
    """Kill some runs before their first answer, others within a batch of two: only unfinished answers are lost."""
    log = "logs/generate_answers/banks.log"
    directory = fresh.copy(tmp_path / "run")
    generation = {"temperature": 0, "batch_size": 2, "max_new_tokens": 256}
    mix = {"grpo_fraction": 1.0, "sft_fraction": 0.5}
    directory.configure(directory.config | {"teacher": TEACHER | {"generation": generation}, "mix": mix})
    undisturbed = directory.copy(tmp_path / "undisturbed")
    before_first, an_answer = run_undisturbed(undisturbed)

    instants, within_batch = random.Random(3), 0
    for _ in range(10):
        kept, answers = count_cached(directory), instants.randrange(4)
        later = instants.random() * (2 * an_answer if answers else before_first)
        (directory / log).unlink(missing_ok=True)
        if not kill_later(start(directory, ANSWERS), lambda: count_cached(directory) >= kept + answers, later):  # noqa: B023
            break  # the undisturbed run was slower than this one, which has ended
        assert not (directory / ANSWERS).exists()
        within_batch += count_cached(directory) > kept
        if (directory / log).exists() and (found := re.search(r"(\d+) in the cache", (directory / log).read_text())):
            assert int(found[1]) == kept  # every answer that the killed run had finished
        directory.run("--unlock")
    assert within_batch >= 5

    kept = count_cached(directory)
    directory.run(ANSWERS)
    assert (directory / ANSWERS).read_bytes() == (undisturbed / ANSWERS).read_bytes()
    if kept < 50:
        stats = json.loads((directory / STATS).read_text())
        assert (stats["prompts"], stats["from_cache"], stats["generated"]) == (50, kept, 50 - kept)
    assert count_cached(directory) == 50  # whole lines, and no answer twice


def test_status_shows_what_is_done_and_why_not(copy):
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
