"""Trainings on the GPU end where the CPU's do: methods, signals, LoRA, precisions, optimizers, resuming, memory."""

import gc
from pathlib import Path

import pytest
import torch
from tiny import save_model
from training_runs import Killed, assert_same_weights, change_run, log_lines, train_student, weights
from transformers import TrainerCallback

import compute_signal as signal_script
from distill.common.quantization_schemes import SCHEMES
from distill.export.compressed_weights import restore
from distill.models.load import select_device
from distill.models.scale_file import read_rounding
from distill.student import train_student as student_module
from distill.student.divergences import METHODS
from distill.teacher.compute_signal import compute_signal

# Plain SGD: Adam divides by the gradient's size, so that rounding turns the sign of an update whose gradient is near 0.
SGD = {"optimizer": "sgd", "learning_rate": 0.5, "logging_steps": 1, "epochs": 2.0}
NUMBERS = ("loss", "ce", "kd", "grad_norm", "val_loss")


def both(options, device, method="forward_kl", **changes):
    """The runs of the same options on the CPU and on the GPU."""
    settings = SGD | changes
    return options(method, "on_cpu", **settings), options(method, "on_gpu", **settings | {"device": device})


def assert_same_run(run, wanted, rel=1e-3):
    """Compare numbers of the log, and weights."""
    lines, others = log_lines(run), log_lines(wanted)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        found, expected = ({name: one[name] for name in NUMBERS if one.get(name) is not None} for one in (line, other))
        assert found == pytest.approx(expected, rel=rel, abs=1e-6), line["step"]
    assert_same_weights(weights(run), weights(wanted), rtol=rel, atol=rel / 10)


def add_signal(tmp_path, models, records, kind, device):
    """Options that train from a signal which was computed on a device."""
    argv = ["--data", "unused", "--kind", kind, "--out", str(tmp_path / f"signal_{kind}_{device}")]
    argv += ["--examples", str(tmp_path / "examples")]
    argv += ["--model", models["teacher"], "--dtype", "float32", "--device", device]
    argv += ["--top-k", "8", "--temperatures", "2.0"] if kind == "topk" else []
    kept = vars(signal_script.parse_args(argv))
    compute_signal(kept, records, [])
    return {"signal": kind, "top_k": 8 if kind == "topk" else None, "signal_folders": [kept["out"]]}


@pytest.mark.parametrize("method", METHODS)
def test_methods(options, records, device, method):
    on_cpu, on_gpu = both(options, device, method)
    for run in (on_cpu, on_gpu):
        train_student(run, records, records[:3])
    assert_same_run(on_gpu, on_cpu)


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_cached_signals(options, records, models, tmp_path, device, kind):
    """The signal is computed on the device that trains."""
    on_cpu, on_gpu = both(options, device)
    for run, place in ((on_cpu, "cpu"), (on_gpu, device)):
        train_student(change_run(run, **add_signal(tmp_path, models, records, kind, place)), records, [])
    assert_same_run(on_gpu, on_cpu, rel=1e-2)  # signals are stored in 16 bits


@pytest.mark.parametrize("name", SCHEMES)
def test_quantization_aware_training(options, records, models, tmp_path, tokenizer, device, name):
    """The largest weight of a group is half-way between two integers, so that a last bit can decide about it."""
    pytest.importorskip("torchao", reason="torchao is not installed (requirements-extra.txt)")
    models["student"] = save_model(tmp_path / "wide", tokenizer, vocabulary=336, hidden=32, seed=2)
    on_cpu, on_gpu = both(options, device, quantization_aware=name)
    for run in (on_cpu, on_gpu):
        train_student(run, records, records[:3])
    first, other = (log_lines(run)[0] for run in (on_gpu, on_cpu))
    assert [first[key] for key in ("loss", "ce")] == pytest.approx([other[key] for key in ("loss", "ce")], rel=1e-2)
    rounding, scales = read_rounding(on_gpu.out, torch.float32)
    for layer, scale in scales.items():
        restore(layer, weights(on_gpu)[f"{layer}.weight"], scales, layer, rounding)
        assert scale.isfinite().all()


def test_packed_rows(options, records, device):
    """The CPU trains on a row for each record."""
    on_cpu, on_gpu = both(options, device, max_length=150)
    train_student(on_cpu, records, records[:3])
    train_student(change_run(on_gpu, packing=True), records, records[:3])
    assert_same_run(on_gpu, on_cpu)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("lora", [None, 4], ids=["full", "lora"])
def test_lora_and_gradient_checkpointing(options, records, device, lora, checkpointing):
    changes = {"lora_rank": lora, "gradient_checkpointing": checkpointing}
    if lora:
        changes |= {"lora_dropout": 0.0}
    on_cpu, on_gpu = both(options, device, "jsd", **changes)
    for run in (on_cpu, on_gpu):
        train_student(run, records, records[:3])
    assert_same_run(on_gpu, on_cpu)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions(options, records, device, precision):
    """The losses of 16 bits are those of float32 up to their rounding."""
    if precision == "fp16" and device == "cpu":
        pytest.skip("fp16 needs a GPU")
    exact, run = both(options, device, epochs=4.0, learning_rate=0.1)
    train_student(exact, records, [])
    train_student(change_run(run, precision=precision), records, [])
    found, wanted = ([line["loss"] for line in log_lines(one) if "loss" in line] for one in (run, exact))
    if precision == "fp16":  # the gradient scaler may skip the first steps
        found, wanted = [found[0], found[-1]], [wanted[0], wanted[-1]]
    assert found == pytest.approx(wanted, rel={"fp32": 1e-3, "bf16": 0.05, "fp16": 0.2}[precision])
    assert found[-1] < found[0]


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adafactor"])
def test_optimizers(options, records, device, optimizer):
    """bitsandbytes keeps weights of fewer than 4,096 numbers in 32 bits; the embeddings here have more."""
    run = options("seqkd", "on_gpu", optimizer=optimizer, epochs=12.0, learning_rate=1e-2, device=device)
    wanted = options("seqkd", "on_cpu", optimizer="adamw_torch", epochs=12.0, learning_rate=1e-2)
    for one in (run, wanted):
        train_student(one, records, [])
    first, last = (log_lines(run)[place]["loss"] for place in (0, -1))
    assert last < 0.8 * first
    if optimizer != "adafactor":
        assert last == pytest.approx(log_lines(wanted)[-1]["loss"], rel=0.1)


def test_on_policy_steps(options, records, device):
    """The student's own answers, sampled on the GPU, are the CPU's."""
    changes = {"on_policy_fraction": 0.5, "on_policy_max_new_tokens": 8}
    on_cpu, on_gpu = both(options, device, "reverse_kl", **changes)
    for run in (on_cpu, on_gpu):
        train_student(run, records, [])
    assert_same_run(on_gpu, on_cpu)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_teacher(options, records, device, tmp_path, tokenizer, quantization):
    teacher = save_model(tmp_path / "wide", tokenizer, hidden=64, scale=4.0)
    changes = {"epochs": 1.0, "teacher_model": teacher}
    exact, run = options(out="exact", **changes), options(out="quantized", device=device, **changes)
    train_student(exact, records, [])
    train_student(change_run(run, teacher_quantization=quantization), records, [])
    assert log_lines(run)[0]["kd"] == pytest.approx(log_lines(exact)[0]["kd"], rel=0.3)


# ---- Resuming ----


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "lora_rank": 4}], ids=["fp32", "bf16, lora"])
def test_a_killed_run_continues_to_the_same_weights(options, records, device, monkeypatch, changes):
    """AdamW with its states; the random numbers of dropout are the GPU's."""
    settings = {"epochs": 3.0, "save_steps": 2, "device": device} | changes
    whole, run = options(out="whole", **settings), options(out="killed", **settings)
    train_student(whole, records, records[:2])
    original = student_module.DistillTrainer

    def build(*args, **kwargs):
        trainer = original(*args, **kwargs)
        trainer.add_callback(Kill(5))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(student_module, "DistillTrainer", build)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    assert not run.out.exists()
    gc.collect()
    train_student(run, records, records[:2])
    assert [line["step"] for line in log_lines(run)] == [line["step"] for line in log_lines(whole)]
    assert_same_weights(weights(run), weights(whole), rtol=1e-4, atol=1e-5)


# ---- Memory ----


def lengthen(records, words):
    """The records with longer prompts."""
    changed = []
    for record in records:
        system, user, answer = record["messages"]
        changed.append(record | {"messages": [system, user | {"content": user["content"] + " more" * words}, answer]})
    return changed


def test_a_batch_that_does_not_fit_is_halved(options, records, tmp_path, tokenizer, device, monkeypatch, caplog):
    """The second run has only three quarters of the memory that the batch took in the first one."""
    size = {"hidden": 16} if device == "cpu" else {"hidden": 512, "layers": 4}
    student = save_model(tmp_path / "large", tokenizer, vocabulary=336, seed=2, **size)
    changes = SGD | {"model": student, "batch_size": 8, "gradient_accumulation_steps": 1, "epochs": 1.0}
    changes |= {"gradient_checkpointing": False, "device": device, "learning_rate": 1e-2}
    long = lengthen(records[:8], 5 if device == "cpu" else 400)
    whole, halved = options("seqkd", "whole", **changes), options("seqkd", "halved", **changes)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train_student(whole, long, [])
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(0.75 * torch.cuda.max_memory_reserved() / total)
    else:
        score = student_module.DistillTrainer.score

        def fail_above_four(self, model, examples, *more):
            if len(examples) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return score(self, model, examples, *more)

        monkeypatch.setattr(student_module.DistillTrainer, "score", fail_above_four)
    with caplog.at_level("WARNING"):
        train_student(halved, long, [])
    assert "out of memory: repeating the step with 4 records per micro-batch" in caplog.text
    assert_same_run(halved, whole)


def test_the_log_has_the_memory_of_the_gpu(options, records, real_gpu):
    """At least weights, gradients and two states of AdamW; no more than the GPU has."""
    run = options(device="cuda", epochs=1.0)
    torch.cuda.reset_peak_memory_stats()
    train_student(run, records, [])
    peak = torch.cuda.max_memory_allocated()
    assert 4 * sum(one.numel() * 4 for one in weights(run).values()) < peak
    assert peak <= torch.cuda.max_memory_reserved() <= torch.cuda.get_device_properties(0).total_memory
    line = log_lines(run)[-1]
    assert line["memory_mb"] == pytest.approx(peak / 2**20, abs=1)
    assert line["memory_mb"] <= line["reserved_mb"] <= torch.cuda.max_memory_reserved() // 2**20


def test_auto_is_the_gpu(options, records, device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr("distill.models.load.GPU_FILE", Path("/nonexistent"))
    assert select_device("auto").type == device
    seen = []
    original = student_module.DistillTrainer.score

    def note(self, *arguments):
        seen.append(self.args.device.type)
        return original(self, *arguments)

    monkeypatch.setattr(student_module.DistillTrainer, "score", note)
    train_student(options("seqkd", device="auto", epochs=1.0), records, [])
    assert set(seen) == {device}
