"""What a training says before and while it runs: free disk space, and the steps that are left."""

import json
import logging
import re

import pytest
from reported_progress import Reported
from training_runs import Killed, kill_at, train_student

from distill.common import disk, progress
from distill.common.errors import InputError
from distill.student import train_student as student_module


@pytest.fixture
def needs(monkeypatch):
    """The needs that the training asks for, by folder."""
    found = {}
    monkeypatch.setattr(student_module, "check_free", lambda wanted, *texts: found.update(wanted))
    return found


def test_the_need_is_the_size_of_the_checkpoints_and_the_student(options, records, monkeypatch, needs):
    run = options(save_steps=2, save_total_limit=1, epochs=4.0, optimizer="adamw_torch")
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            train_student(run, records, [])
    (checkpoint,) = run.checkpoints.glob("s/banks/*/checkpoint-2")
    weights = next(path for path in checkpoint.glob("*.safetensors"))
    size = weights.stat().st_size + (checkpoint / "optimizer.pt").stat().st_size
    (folder, need), (out, student) = needs.items()
    assert folder == run.checkpoints / "s/banks"
    assert need == pytest.approx(2 * size, rel=0.25)  # two at a time; headers of files count in models this small
    monkeypatch.undo()
    train_student(run, records, [])
    assert out == run.out
    assert student == pytest.approx((run.out / "model.safetensors").stat().st_size, rel=0.1)


def test_a_full_disk_stops_a_training_before_its_first_step(options, records, monkeypatch):
    monkeypatch.setattr(disk, "find_free", lambda _: 1000)
    run = options(save_steps=2)
    with pytest.raises(InputError, match=r"of free disk for checkpoints and student, found 1 kB.*save_total_limit"):
        train_student(run, records, [])
    assert not list(run.checkpoints.rglob("checkpoint-*"))


def test_steps_and_time_left_are_logged_also_after_a_resume(options, records, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    run = options(save_steps=2, epochs=4.0)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            train_student(run, records, [])
    texts = [record.getMessage() for record in caplog.records]
    prepared = [text for text in texts if re.match(r"loading|tokenizing|training on", text)]
    assert [text.split()[0] for text in prepared] == ["loading", "tokenizing", "loading", "training"]
    lines = [re.match(r"training: (\d+) of (\d+) steps", text) for text in texts]
    assert [int(line[1]) for line in lines if line] == [1, 2, 3]
    caplog.clear()
    train_student(run, records, [])
    (first, *_) = [text for text in caplog.messages if text.startswith("training: ")]
    assert re.match(r"training: 3 of \d+ steps, \d+% from a checkpoint", first)


def test_steps_losses_speed_and_memory_are_reported(options, records, monkeypatch):
    reported = Reported(monkeypatch)
    run = options(save_steps=2, epochs=4.0, logging_steps=1)
    train_student(run, records, records[:2])
    log = [json.loads(line) for line in (run.out / "training_log.jsonl").read_text().splitlines()]
    (first, last) = reported.get_ends()["training"]
    steps = log[-1]["step"]
    assert (first["done"], first["total"], last["done"], last["unit"]) == (0, steps, steps, "steps")
    assert last["loss"] == [line["loss"] for line in log if "loss" in line][-1]
    assert last["val_loss"] == [line["val_loss"] for line in log if "val_loss" in line][-1]
    assert last["memory_mb"] > 0
    assert last["tokens_per_second"] > 0
