"""Training runs for tests: options, splits on disk, and what came out."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import train_student as script
from distill.common.files import dump_json, escape_line
from distill.student import train_student as student_module


class Killed(BaseException):
    """Ends a run as a kill would: nothing that follows is done."""


def make_arguments(folder, models, method="forward_kl", out="out", data="unused"):
    """The command line of a short run in float32 on the CPU."""
    argv = ["--data", str(data), "--name", "s", "--category", "banks", "--model", models["student"]]
    argv += ["--out", str(folder / out), "--checkpoints", str(folder / f"checkpoints_{out}")]
    argv += ["--method", method, "--teacher-model", models["teacher"], "--teacher-dtype", "float32"]
    argv += ["--precision", "fp32", "--device", "cpu", "--epochs", "2", "--batch-size", "2"]
    return [*argv, "--gradient-accumulation-steps", "2", "--learning-rate", "1e-3", "--logging-steps", "2"]


def make_options(*arguments, **settings):
    """The same as options of `distill.student.train_student`."""
    return vars(script.parse_args(make_arguments(*arguments, **settings)))


def train_student(options, train, val):
    """Of one category."""
    student_module.train_student(options, [train], [val])


def write_splits(folder, train, val):
    """The files of a category's splits, as split_answers.py writes them."""
    folder.mkdir(parents=True)
    for name, records in (("train", train), ("val", val)):
        texts = [[message["content"] for message in record["messages"]] for record in records]
        sources = "".join(escape_line(f"{system}\n\n{prompt}") + "\n" for system, prompt, _ in texts)
        (folder / f"{name}.source").write_text(sources, encoding="utf-8")
        (folder / f"{name}.target").write_text("".join(escape_line(answer) + "\n" for *_, answer in texts))
        (folder / f"{name}.jsonl").write_text("".join(dump_json(record) + "\n" for record in records))
    return folder


def weights(options):
    return load_file(Path(options["out"]) / "model.safetensors")


def log_lines(options):
    return [json.loads(line) for line in (Path(options["out"]) / "training_log.jsonl").read_text().splitlines()]


def assert_same_weights(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)
