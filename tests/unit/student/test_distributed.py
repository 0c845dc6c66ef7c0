"""DDP and FSDP on the CPU (gloo) train the same student as a single process; launching on several nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from running import SCRIPTS, environment, preloaded_environment
from safetensors.torch import load_file
from tiny import SPECIAL, ZEPHYR, build_tokenizer, save_model
from training_runs import (
    assert_same_weights,
    change_run,
    make_arguments,
    make_run,
    read_log,
    train_student,
    write_splits,
)
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, Qwen3MoeConfig

import run_on_nodes
from distill.student import fsdp

TORCHRUN = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python", "python"]
# Trains; one of two ranks receives a signal during the third step.
SIGNALLED = """
import os, signal, sys
from distill.student import train_student as student, trainer
class Signalled(trainer.DistillTrainer):
    def training_step(self, *arguments):
        if self.state.global_step == 2 and os.environ["RANK"] == "1": os.kill(os.getpid(), signal.SIGUSR1)
        return super().training_step(*arguments)
student.DistillTrainer = Signalled
import train_student
train_student.main()
"""
# Trains with plain SGD, which configurations do not offer.
SGD = """
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
# Trains; writes where the gradients are after each micro-batch, and the dtype of a layer's weight in the forward pass.
WATCHED = """
import json, os, pathlib, sys
from distill.student import train_student as student, trainer
seen = []
class Watched(trainer.DistillTrainer):
    def training_step(self, model, *arguments):
        weights = dict(self.accelerator.unwrap_model(model).named_parameters())
        layer = self.model.model.layers[0].mlp
        dtypes = []
        hook = layer.register_forward_hook(lambda module, given, out: dtypes.append(
            [str(one) for one in (module.up_proj.weight.dtype, given[0].dtype)]))
        loss = super().training_step(model, *arguments)
        hook.remove()
        grads = [one.grad for one in weights.values() if type(one.grad).__name__ == "Tensor"]
        seen.append({"gradients": len(grads), "dtypes": dtypes[0],
                     "storages": sorted({one.untyped_storage().data_ptr() for one in grads})})
        return loss
student.DistillTrainer = Watched
import train_student
train_student.main()
if os.environ["RANK"] == "0": pathlib.Path(os.environ["SEEN"]).write_text(json.dumps(seen))
"""
# Replaces srun: two nodes that are processes of this machine. Their process ids are written to the file $NODES.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & echo $! >> "$NODES"; pids="$pids $!"; done
worst=0
for pid in $pids; do wait "$pid"; code=$?; ((code > worst)) && worst=$code; done
exit "$worst"
"""
# Writes its rank to a file and waits for SIGUSR1, then exits like a stopped training.
WAITING = """
import os, pathlib, signal, sys, time
received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
names = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
words = sys.argv[1], *(os.environ[name] for name in names)
pathlib.Path(sys.argv[2] + os.environ["RANK"]).write_text(" ".join(words))
while not received: time.sleep(0.05)
sys.exit(143)
"""


def run(*command, **variables):
    """Run a command whose processes are preloaded, and return its exit code and standard error."""
    paths = {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    variables = preloaded_environment() | paths | variables
    done = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def log_of(folder):
    """The numbers of a training log that do not depend on the machine."""
    others = ("tokens_per_second", "memory_mb", "reserved_mb", "warnings")
    return [{name: value for name, value in line.items() if name not in others} for line in read_log(folder)]


def assert_same_run(folder, other, rel=1e-5):
    for line, wanted in zip(log_of(folder), log_of(other), strict=True):
        assert line == pytest.approx(wanted, rel=rel)
    one, two = (load_file(path / "model.safetensors") for path in (folder, other))
    assert_same_weights(one, two, rtol=rel, atol=rel / 10)


FSDP = ["--strategy", "fsdp"]
ON_POLICY = ["--on-policy-fraction=1", "--on-policy-start=0.4", "--on-policy-max-new-tokens=4"]
# The records of a rank's two micro-batches fit one row, so that the first micro-batch is left out.
PACKED = ["--packing", "--max-length", "150", "--batch-size", "1", "--gradient-accumulation-steps", "4"]


@pytest.mark.parametrize(
    ("method", "tied", "more"),
    [
        ("jsd", False, []),
        ("jsd", False, PACKED),
        pytest.param("jsd", False, ["--lora-rank", "4", "--lora-dropout", "0"], marks=pytest.mark.slow),
        pytest.param("jsd", False, ON_POLICY, marks=pytest.mark.slow),
        pytest.param("forward_kl", True, [*FSDP, "--fsdp-offload", "--gradient-checkpointing"], marks=pytest.mark.slow),
        pytest.param("jsd", False, [*FSDP, "--lora-rank", "4", "--lora-dropout", "0"], marks=pytest.mark.slow),
        pytest.param("jsd", False, [*FSDP, *PACKED], marks=pytest.mark.slow),
        pytest.param("jsd", False, [*FSDP, "--cross-tokenizer"], marks=pytest.mark.slow),
    ],
    ids=[
        "ddp",
        "ddp, packed",
        "ddp, lora",
        "ddp, on-policy",
        "fsdp, tied",
        "fsdp, lora",
        "fsdp, packed",
        "fsdp, another tokenizer",
    ],
)
def test_two_ranks_train_the_same_student_as_one(tmp_path, models, records, tokenizer, method, tied, more):
    """9 records in steps of 4: in the last step of an epoch only one rank has a record. DDP answers prompts, too."""
    if tied:
        models |= {"student": save_model(tmp_path / "tied", tokenizer, vocabulary=336, hidden=16, seed=2, tied=True)}
    if "--cross-tokenizer" in more:
        other = build_tokenizer(size=300, special=SPECIAL[::-1])
        models |= {"teacher": save_model(tmp_path / "other", other, vocabulary=320, hidden=32, seed=1, scale=4.0)}
    train, val = records[:9], records[:3]
    data = write_splits(tmp_path / "data", train, val)
    settings = {"learning_rate": 0.5, "max_grad_norm": 0.5, "logging_steps": 1}
    if "--lora-rank" in more:
        settings |= {"lora_rank": 4, "lora_dropout": 0.0}
    if more == ON_POLICY:
        settings |= {"on_policy_fraction": 1.0, "on_policy_start": 0.4, "on_policy_max_new_tokens": 4}
    if "fsdp" not in more:
        settings |= {"validation_samples": 2, "validation_max_new_tokens": 8}
    one = change_run(make_run(tmp_path, models, method, "one"), cross_tokenizer="--cross-tokenizer" in more)
    train_student(change_run(one, optimizer="sgd", **settings), train, val)
    written = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    arguments = make_arguments(tmp_path, models, method, "two", data)
    (tmp_path / "sgd.py").write_text(SGD)
    code, log = run(*TORCHRUN, tmp_path / "sgd.py", *arguments, *written, *more)
    assert code == 0, log
    assert log.count("is sharded over 2 ranks") == (2 if "fsdp" in more else 0)  # teacher and student
    assert_same_run(tmp_path / "two", tmp_path / "one")
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1]
    assert samples[0].count("\n") == (0 if "fsdp" in more else 2 * 2)  # two prompts after each of two epochs
    if more == ON_POLICY:  # of 6 steps, the first 2 are off-policy
        assert [line["on_policy_steps"] for line in read_log(tmp_path / "two") if "loss" in line] == [0, 0, 1, 1, 1, 1]
    before = load_file(Path(models["student"]) / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (load_file(tmp_path / "one/model.safetensors")[name] - before[name]).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], FSDP], ids=["ddp", "fsdp"])
def test_two_ranks_warn_once_of_what_one_warns_of(tmp_path, models, records, caplog, more):
    """Another chat template of the teacher, and a divergence of negligible weight."""
    build_tokenizer(template=ZEPHYR).save_pretrained(models["teacher"])
    data = write_splits(tmp_path / "data", records, [])
    train_student(change_run(make_run(tmp_path, models, out="one"), alpha=1e-4), records, [])
    arguments = make_arguments(tmp_path, models, out="two", data=data)
    code, log = run(*TORCHRUN, SCRIPTS / "train_student.py", *arguments, "--alpha=1e-4", *more)
    assert code == 0, log
    one, two = (read_log(tmp_path / name)[0]["warnings"] for name in ("one", "two"))
    assert one == two
    assert len(one) == 2
    for warning in one:
        assert log.count(warning) == caplog.text.count(warning) == 1


def test_gradients_are_views_of_the_buckets_of_ddp(tmp_path, models, records):
    """Also in micro-batches that are not reduced; DDP makes its final buckets in the second reduction."""
    data = write_splits(tmp_path / "data", records[:8], [])
    arguments = make_arguments(tmp_path, models, "forward_kl", "two", data)
    (tmp_path / "watched.py").write_text(WATCHED)
    more = ["--batch-size=1", "--gradient-accumulation-steps=4"]  # two micro-batches per rank
    code, log = run(*TORCHRUN, tmp_path / "watched.py", *arguments, *more, SEEN=str(tmp_path / "seen"))
    assert code == 0, log
    found = json.loads((tmp_path / "seen").read_text())
    assert len(found) == 8
    first, *others = found[3:]
    assert len(first["storages"]) < first["gradients"]
    assert [one["storages"] for one in others] == [first["storages"]] * len(others)


def test_fsdp_in_bf16_gathers_bfloat16_and_trains_what_ddp_trains(tmp_path, models, records):
    train = records[:8]
    data = write_splits(tmp_path / "data", train, [])
    arguments = make_arguments(tmp_path, models, "forward_kl", "two", data)
    (tmp_path / "watched.py").write_text(WATCHED)
    code, log = run(
        *TORCHRUN, tmp_path / "watched.py", *arguments, *FSDP, "--precision=bf16", SEEN=str(tmp_path / "seen")
    )
    assert code == 0, log
    # The weight is gathered in bfloat16, while the layer's input stays what it is with DDP.
    assert {tuple(one["dtypes"]) for one in json.loads((tmp_path / "seen").read_text())} == {
        ("torch.bfloat16", "torch.float32")
    }
    one = change_run(make_run(tmp_path, models, "forward_kl", "one"), precision="bf16")
    train_student(one, train, [])
    for line, wanted in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        assert line == pytest.approx(wanted, rel=2e-2)


def test_the_process_group_knows_its_device_and_waits_half_an_hour(monkeypatch):
    groups, chosen = [], []
    for name, value in fsdp.SINGLE_PROCESS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(fsdp.dist, "init_process_group", lambda **settings: groups.append(settings))
    for kind in ("cpu", "cuda"):
        fsdp.init_distributed(torch.device(kind))
    own = torch.device("cuda", 1)
    assert groups == [
        {"backend": "gloo", "timeout": timedelta(minutes=30)},
        {"backend": "cpu:gloo,cuda:nccl", "timeout": timedelta(minutes=30), "device_id": own},
    ]
    assert chosen == [own]


SIZES = {"vocab_size": 336, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16}
OTHERS = {
    "GPT-2": (GPT2Config(**SIZES, n_positions=512, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0), []),
    "Falcon": (FalconConfig(**SIZES, alibi=False, new_decoder_architecture=False), []),
    "experts, lora": (
        Qwen3MoeConfig(
            **SIZES, num_key_value_heads=2, head_dim=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
        ),
        ["--lora-rank", "2", "--lora-dropout", "0"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_fsdp_of_other_architectures(tmp_path, models, records, tokenizer, family):
    """Their layers have other names, or weights that are no linear layers."""
    config, more = OTHERS[family]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    models |= {"student": str(tmp_path / "other")}
    data = write_splits(tmp_path / "data", records, records[:2])
    for out, launch, strategy in (("one", ["python"], "ddp"), ("two", TORCHRUN, "fsdp")):
        (tmp_path / "sgd.py").write_text(SGD)
        arguments = [*make_arguments(tmp_path, models, out=out, data=data), "--learning-rate=0.5", *more]
        code, log = run(*launch, tmp_path / "sgd.py", *arguments, "--strategy", strategy, "--logging-steps=1")
        assert code == 0, log
    assert_same_run(tmp_path / "two", tmp_path / "one", rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_resumes_a_training_of_two_ranks(tmp_path, models, records, strategy):
    """A signal to one rank stops both at the same step; any number of ranks can load the checkpoint."""
    data = write_splits(tmp_path / "data", records, records[:2])
    settings = {"logging_steps": 1, "eval_steps": 1, "best_checkpoint": True}
    train_student(change_run(make_run(tmp_path, models, out="whole"), **settings), records, records[:2])
    more = ["--logging-steps=1", "--eval-steps=1", "--best-checkpoint", "--strategy", strategy]
    arguments = [*make_arguments(tmp_path, models, out="stopped", data=data), *more]
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)
    code, log = run(*TORCHRUN, script, *arguments)
    assert code != 0
    assert log.count("stopped by a signal") == 2, log
    assert "(exitcode: 143)" in log
    (checkpoint,) = (tmp_path / "checkpoints_stopped").glob("s/banks/*/checkpoint-3")
    assert (checkpoint / "rng_state_1.pth").exists()
    code, log = run("python", SCRIPTS / "train_student.py", *arguments)
    assert code == 0, log
    assert f"resuming from {checkpoint}" in log
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


# ---- Nodes ----


@pytest.fixture
def nodes(tmp_path):
    """Environment variables of a Slurm job in which srun is SRUN."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{environment()['PATH']}"
    return {"PATH": path, "NODES": str(tmp_path / "nodes"), "SLURM_JOB_ID": "77", "SLURM_GPUS_ON_NODE": "1"}


def wait_for(*paths):
    for _ in range(1200):
        if all(path.exists() and path.read_text() for path in paths):
            return [path.read_text() for path in paths]
        time.sleep(0.05)
    raise TimeoutError(paths)


def test_nodes_form_one_group_receive_signals_and_return_the_exit_code(tmp_path, nodes):
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, SCRIPTS / "run_on_nodes.py", "--nodes", "2", tmp_path / "waiting.py"]
    command += ["--signal", tmp_path / "rank"]  # an option that torchrun has too
    with subprocess.Popen(list(map(str, command)), env=environment() | nodes) as process:
        texts = wait_for(tmp_path / "rank0", tmp_path / "rank1")
        for pid in (tmp_path / "nodes").read_text().split():
            os.kill(int(pid), signal.SIGUSR1)
        assert process.wait(120) == 143
    host = os.uname().nodename
    assert texts == [f"--signal {rank} 2 {host} {run_on_nodes.FIRST_PORT + 77}" for rank in (0, 1)]


def test_one_node_starts_a_process_per_gpu(tmp_path, nodes):
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, SCRIPTS / "run_on_nodes.py", "--nodes", "1", "--gpus", "2", tmp_path / "waiting.py"]
    command += ["--signal", tmp_path / "rank"]
    variables = environment() | nodes | {"SLURM_GPUS_ON_NODE": "2"}
    with subprocess.Popen(list(map(str, command)), env=variables) as process:
        texts = wait_for(tmp_path / "rank0", tmp_path / "rank1")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(120) == 143
    assert [text.split()[:3] for text in texts] == [["--signal", rank, "2"] for rank in "01"]
    assert not (tmp_path / "nodes").exists()  # no srun


@pytest.mark.parametrize(
    ("options", "warning"),
    [(["--nodes", "2"], "not a Slurm job"), (["--nodes", "1", "--gpus", "2"], "gpus_per_node is 2")],
)
def test_without_nodes_or_gpus_the_script_runs_in_one_process_with_a_warning(tmp_path, options, warning):
    """On the CPU; GPUs are hidden."""
    (tmp_path / "script.py").write_text("import sys; sys.exit(' '.join(sys.argv[1:]))")
    command = [sys.executable, SCRIPTS / "run_on_nodes.py", *options, tmp_path / "script.py", "--nodes", "x"]
    code, log = run(*command, CUDA_VISIBLE_DEVICES="")
    assert (code, log.splitlines()[-1]) == (1, "--nodes x")
    assert warning in log


@pytest.mark.parametrize(
    ("codes", "code"),
    [([143, 143], 143), ([-15, 143], 143), ([-10], 143), ([1, -15], 1), ([143, 1], 1), ([-9], 137), ([-9, 143], 137)],
)
def test_a_failure_takes_precedence_over_a_stop(codes, code):
    assert run_on_nodes.choose_exit_code(codes) == code
