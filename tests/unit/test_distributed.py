"""Several processes on the CPU (gloo): they end where one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT, SCRIPTS, environment
from safetensors.torch import load_file
from shard_worker import add_gradients, prepare
from tiny import save_model
from training_runs import assert_same_weights, make_arguments, write_splits

from distill.examples import encode_examples


def launch(*command, processes=2):
    """Run under torchrun; standard error, where it fails."""
    paths = os.pathsep.join(map(str, (SCRIPTS, ROOT / "tests/helpers")))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            *map(str, command),
        ],
        env=environment() | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("tokens_per_second", "memory_mb")}
        for line in lines
    ]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("jsd", []),
        ("jsd", ["--lora-rank", "4", "--lora-dropout", "0"]),
        ("forward_kl", ["--strategy", "fsdp", "--fsdp-offload", "--gradient-checkpointing"]),
        ("jsd", ["--strategy", "fsdp", "--lora-rank", "4", "--lora-dropout", "0"]),
    ],
    ids=["full", "lora", "shards", "shards-lora"],
)
def test_two_processes_train_as_one_does(tmp_path, models, records, method, more):
    """10 records in steps of 4: the last step of an epoch has one micro-batch for two processes."""
    data = write_splits(tmp_path / "data", records, records[:3])
    settings = ["--optimizer", "sgd", "--learning-rate", "0.5", "--max-grad-norm", "0.5", "--logging-steps", "1"]
    plain = [one for one in more if one not in ("--strategy", "fsdp", "--fsdp-offload")]
    for out, processes, changes in (("one", 1, plain), ("two", 2, more)):
        arguments = make_arguments(tmp_path, models, method, out, data)
        log = launch(SCRIPTS / "train_student.py", *arguments, *settings, *changes, processes=processes)
        assert log.count("is shared out among 2 processes") == (4 if "fsdp" in changes else 0)
    one, two = tmp_path / "one", tmp_path / "two"
    assert_same_weights(
        load_file(two / "model.safetensors"), load_file(one / "model.safetensors"), rtol=1e-5, atol=1e-6
    )
    for line, other in zip(log_of(two), log_of(one), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    before = load_file(Path(models["student"]) / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (load_file(one / "model.safetensors")[name] - before[name]).abs().max() > 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_sharded_weights_have_the_gradients_of_one_process(tmp_path, models, records, tokenizer, tied):
    """FSDP: the loss is taken in the model's own forward, where its weights are whole."""
    student = save_model(tmp_path / "student", tokenizer, vocabulary=336, hidden=16, seed=2, tied=tied)
    examples = encode_examples(records[:8], tokenizer, tokenizer, 1000, len(tokenizer))
    path, out = tmp_path / "examples.json", tmp_path / "gradients.pt"
    path.write_text(json.dumps(examples))
    launch(ROOT / "tests/helpers/shard_worker.py", student, models["teacher"], path, out)
    model, online = prepare(student, models["teacher"])
    add_gradients(model, online, examples, sum(len(one["completion"]) for one in examples))
    found = torch.load(out)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_two_processes_go_on_where_one_was_stopped(tmp_path, models, records):
    """A checkpoint does not belong to a number of processes."""
    data = write_splits(tmp_path / "data", records, [])
    settings = ["--optimizer", "sgd", "--learning-rate", "0.5", "--save-steps", "2", "--logging-steps", "1"]
    whole = make_arguments(tmp_path, models, out="whole", data=data)
    launch(SCRIPTS / "train_student.py", *whole, *settings, processes=1)
    arguments = make_arguments(tmp_path, models, out="stopped", data=data)
    code = (
        "import sys, train_student; from distill import training\n"
        "class Stopped(training.DistillTrainer):\n"
        "    def training_step(self, *arguments):\n"
        "        if self.state.global_step == 3: sys.exit(9)\n"
        "        return super().training_step(*arguments)\n"
        "from distill import student; student.DistillTrainer = Stopped\n"
        "train_student.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *settings], cwd=SCRIPTS, env=environment(), capture_output=True
    )
    assert done.returncode == 9, done.stderr
    assert "going on from" in launch(SCRIPTS / "train_student.py", *arguments, *settings)
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert_same_weights(found, wanted, rtol=1e-5, atol=1e-6)
