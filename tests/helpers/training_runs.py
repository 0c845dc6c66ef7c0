"""Training runs for tests: options, splits on disk, and what came out."""

import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import train_student as script
from distill.common.files import dump_json, escape_line
from distill.records.splits import get_lines
from distill.student import train_student as student_module
from distill.student.divergences import METHODS
from distill.student.options import LoraOptions
from distill.student.student_run import StudentRun, read_run

TRAINER = student_module.DistillTrainer


class Killed(BaseException):
    """Ends a run as a kill would: nothing that follows is done."""


def callback_at(monkeypatch, step, action):
    """Call a function after step `step`, and after its checkpoint if it has one."""

    class At(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                action()

    def build(*args, **kwargs):
        trainer = TRAINER(*args, **kwargs)
        trainer.add_callback(At())
        return trainer

    monkeypatch.setattr(student_module, "DistillTrainer", build)


def kill():
    raise Killed


def kill_at(monkeypatch, step):
    callback_at(monkeypatch, step, kill)


def make_arguments(folder, models, method="forward_kl", out="out", data="unused"):
    """The command line of a short run in float32 on the CPU."""
    argv = ["--data", str(data), "--name", "s", "--category", "banks", "--model", models["student"]]
    argv += ["--out", str(folder / out), "--checkpoints", str(folder / f"checkpoints_{out}")]
    argv += ["--examples", str(folder / "examples")]
    argv += ["--method", method, "--temperature", "2", "--alpha", "0.5"]  # both terms and τ² count
    argv += ["--teacher-model", models["teacher"], "--teacher-dtype", "float32"]
    argv += ["--precision", "fp32", "--device", "cpu", "--epochs", "2", "--batch-size", "2"]
    argv += ["--gradient-accumulation-steps", "2", "--learning-rate", "1e-3", "--logging-steps", "2"]
    return [*argv, "--validation-samples", "0"]  # most tests need no answers


def make_run(*arguments, **settings) -> StudentRun:
    """The same as the options of a run."""
    return read_run(script.parse_args(make_arguments(*arguments, **settings)))


def change_run(run: StudentRun, **changes) -> StudentRun:
    """A run with other options, by their names on the command line; their values are not checked."""
    for name, value in changes.items():
        run = change_option(run, name, value)
    return run


def change_option(run, name, value):
    if name == "lora_rank" and value is None:
        return replace(run, lora=None)
    if name == "method" and not METHODS[value].needs_teacher:
        return replace(run, teacher=None, objective=replace(run.objective, method=value))
    if name == "teacher_adapter":
        return replace(run, teacher=replace(run.teacher, adapters=tuple(value)))
    if name == "signal_folders":
        return replace(run, teacher=replace(run.teacher, signal_folders=tuple(map(Path, value))))
    for group in ("teacher", "on_policy", "lora"):
        if name.startswith(f"{group}_"):
            options = getattr(run, group) or LoraOptions()
            return replace(run, **{group: replace(options, **{name.removeprefix(f"{group}_"): value})})
    for group in ("objective", "train"):
        if name in {one.name for one in fields(getattr(run, group))}:
            return replace(run, **{group: replace(getattr(run, group), **{name: value})})
    return replace(run, **{name: value})


def train_student(run, train, val):
    """Train on the records of one category."""
    student_module.train_student(run, [train], [val])


def write_splits(folder, train, val):
    """The files of a category's splits, as split_answers.py writes them."""
    folder.mkdir(parents=True)
    for name, records in (("train", train), ("val", val)):
        lines = [get_lines(record) for record in records]
        (folder / f"{name}.source").write_text("".join(escape_line(one) + "\n" for one, _ in lines), encoding="utf-8")
        (folder / f"{name}.target").write_text("".join(escape_line(one) + "\n" for _, one in lines))
        (folder / f"{name}.jsonl").write_text("".join(dump_json(record) + "\n" for record in records))
    return folder


def weights(run):
    return load_file(run.out / "model.safetensors")


def log_lines(run):
    return read_log(run.out)


def read_log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def assert_same_weights(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)
