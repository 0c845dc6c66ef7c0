"""Two processes on one GPU train the student of a single one, by gloo, since NCCL refuses two ranks on a GPU."""

import subprocess
import sys

import pytest
from running import SCRIPTS, environment
from training_runs import change_run, make_arguments, make_run, read_log, train_student, weights, write_splits

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# Trains with plain SGD. With SHARED_GPU, all ranks compute on the first GPU and communicate by gloo.
SCRIPT = """
import os
if os.environ.get("SHARED_GPU"):
    os.environ["LOCAL_RANK"] = "0"
    import torch.distributed
    torch.distributed.init_process_group("gloo")
from dataclasses import replace
from distill.student import train_student as student
original = student.train_student
def train_by_sgd(run, *splits):
    original(replace(run, train=replace(run.train, optimizer="sgd")), *splits)
student.train_student = train_by_sgd
import train_student
from distill.common.errors import run_script
run_script(train_student.main)
"""
SETTINGS = {"learning_rate": 0.5, "max_grad_norm": 0.5, "logging_steps": 1}
LORA = ["--lora-rank", "4", "--lora-dropout", "0"]


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (2, []),
        (2, LORA),
        (2, ["--strategy", "fsdp"]),
        (2, ["--strategy", "fsdp", "--fsdp-offload", "--gradient-checkpointing"]),
        (2, ["--strategy", "fsdp", *LORA]),
        (1, ["--strategy", "fsdp"]),
    ],
    ids=["ddp", "ddp, lora", "fsdp", "fsdp, offload", "fsdp, lora", "fsdp, one rank by nccl"],
)
def test_ranks_train_the_student_of_a_single_process(tmp_path, models, records, device, ranks, more):
    """9 records in steps of 4: in the last step of an epoch only one rank has a record."""
    train, val = records[:9], records[:3]
    data = write_splits(tmp_path / "data", train, val)
    settings = SETTINGS | {"device": device} | ({"lora_rank": 4, "lora_dropout": 0.0} if "--lora-rank" in more else {})
    one = change_run(make_run(tmp_path, models, "jsd", "one"), optimizer="sgd", **settings)
    train_student(one, train, val)
    (tmp_path / "sgd.py").write_text(SCRIPT)
    written = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    arguments = [*make_arguments(tmp_path, models, "jsd", "two", data), "--device", device, *written, *more]
    variables = {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"} | ({"SHARED_GPU": "1"} if ranks > 1 else {})
    command = [*TORCHRUN, f"--nproc_per_node={ranks}", "--", str(tmp_path / "sgd.py"), *arguments]
    done = subprocess.run(command, env=environment() | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if "fsdp" in more and ranks > 1:
        assert done.stderr.count(f"is sharded over {ranks} ranks") == 2  # teacher and student
    for line, wanted in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        names = {"step", "loss", "ce", "kd", "grad_norm", "val_loss", "completion_tokens"} & wanted.keys()
        assert {name: line[name] for name in names} == pytest.approx({name: wanted[name] for name in names}, rel=1e-3)
    found, expected = weights(change_run(one, out=tmp_path / "two")), weights(one)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert (weight - expected[name]).abs().max() < 1e-4, name
