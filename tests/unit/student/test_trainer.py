"""Training: the objective, its invariances, resuming, and the student's folder."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from divergence_formulas import give_parameters
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import build_model, build_tokenizer, count_generated, save_base_model, save_model
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import Killed, assert_same_weights, change_run, kill_at, log_lines, train_student, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.models.completions import collate, take_rows
from distill.models.examples import encode_examples
from distill.student import loss as losses
from distill.student import train_student as student_module
from distill.student import training_meter
from distill.student.checkpoints import find_last_checkpoint
from distill.student.divergences import METHODS
from distill.student.fused_loss import distillation_loss
from distill.student.step_batches import StepBatches
from distill.student.trainer_arguments import make_trainer_arguments
from distill.student.training_meter import MIN_GRADIENT_RATIO, describe_weak_divergence


def expected_loss(run, records, tokenizer, alpha, tau, sizes=None):
    """The objective of all records in float64, from all logits and a loop over positions."""
    sizes = sizes or len(tokenizer)
    models = [AutoModelForCausalLM.from_pretrained(name).double() for name in (run.model, run.teacher.model)]
    ce = kd = count = 0.0
    chat = ChatTemplate(tokenizer)
    for record in records:
        system, prompt, answer = (message["content"] for message in record["messages"])
        start, end = chat.encode_prompt(system, prompt), chat.encode_completion(answer)
        with torch.no_grad():
            student, teacher = (model(torch.tensor([start + end])).logits[0] for model in models)
        for offset, token in enumerate(end):
            position = len(start) + offset - 1
            ce -= student[position].log_softmax(-1)[token].item()
            p, q = ((logits[position, :sizes] / tau).log_softmax(-1) for logits in (teacher, student))
            kd += (p.exp() * (p - q)).sum().item()
            count += 1
    return alpha * tau**2 * kd / count + (1 - alpha) * ce / count, ce / count, kd / count


def test_first_logged_loss_is_the_float64_objective(options, records, tokenizer):
    run = options(batch_size=3, gradient_accumulation_steps=4, warmup_ratio=0.0)
    train_student(run, records, records[:3])
    loss, ce, kd = expected_loss(run, records, tokenizer, alpha=0.5, tau=2.0)
    first = log_lines(run)[0]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    assert first["ce"] == pytest.approx(ce, rel=1e-5)
    assert first["kd"] == pytest.approx(kd, rel=1e-4)


def test_a_tokenizer_larger_than_both_models_shares_the_rows_of_the_smaller(options, records, models):
    larger = build_tokenizer()
    larger.add_tokens([f"<new{number}>" for number in range(60)])
    assert len(larger) > 352
    for folder in models.values():
        larger.save_pretrained(folder)
    run = options(batch_size=3, gradient_accumulation_steps=4, warmup_ratio=0.0)
    train_student(run, records, [])
    loss, ce, kd = expected_loss(run, records, larger, alpha=0.5, tau=2.0, sizes=336)
    first = log_lines(run)[0]
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    assert (first["ce"], first["kd"]) == (pytest.approx(ce, rel=1e-5), pytest.approx(kd, rel=1e-4))


def test_validation_is_weighted_by_token(options, records, tokenizer):
    run = options(learning_rate=0.0, epochs=1.0)
    train_student(run, records[:6], records[6:])
    loss, ce, kd = expected_loss(run, records[6:], tokenizer, alpha=0.5, tau=2.0)
    (line,) = [line for line in log_lines(run) if "val_loss" in line]
    assert line["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert line["val_ce"] == pytest.approx(ce, rel=1e-5)
    assert line["val_kd"] == pytest.approx(kd, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_does_not_change_the_step(options, records, method):
    # SGD: a step is the gradient itself. Records differ in length, so a mean of means would differ.
    found = []
    for batch_size, steps in ((8, 1), (2, 4), (1, 8)):
        run = options(method, out=f"out{steps}", batch_size=batch_size, gradient_accumulation_steps=steps, epochs=1.0)
        plain = {"optimizer": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.5, "warmup_ratio": 0.0}
        train_student(change_run(run, **plain), records[:8], [])
        found.append(weights(run))
    before = load_file(Path(run.model) / "model.safetensors")
    assert max((found[0][name] - before[name]).abs().max() for name in before) > 1e-3
    assert_same_weights(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert_same_weights(found[0], found[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(options, records, method):
    run = options(method, epochs=30.0, learning_rate=1e-2)
    train_student(run, records, [])
    losses = [line["loss"] for line in log_lines(run)]
    assert losses[-1] < (0.9 if method == "engine" else 0.8) * losses[0]  # engine is above 0 for the teacher itself


def test_seqkd_logs_no_divergence(options, records):
    run = options("seqkd", epochs=1.0)
    train_student(run, records[:6], records[6:])
    assert all(line["kd"] is None for line in log_lines(run) if "loss" in line)
    assert all(line["val_kd"] is None for line in log_lines(run) if "val_loss" in line)


def test_log_has_first_and_last_step_and_every_field(options, records):
    run = options(epochs=3.0, logging_steps=4)
    train_student(run, records[:8], records[8:])
    training = [line for line in log_lines(run) if "loss" in line]
    assert [line["step"] for line in training] == [1, 4, 6]
    fields = {"step", "epoch", "loss", "ce", "kd", "learning_rate", "grad_norm", "completion_tokens"}
    fields |= {"tokens_per_second", "memory_mb", "reserved_mb", "ce_grad", "kd_grad"}
    assert all(line.keys() == fields for line in training)
    assert sum("val_loss" in line for line in log_lines(run)) == 3


@pytest.mark.parametrize(("steps", "ratio", "expected"), [(1, 0.1, 0), (2, 0.9, 1), (10, 0.1, 1), (100, 0.25, 25)])
def test_the_warm_up_is_shorter_than_the_training(options, steps, ratio, expected):
    train = options(warmup_ratio=ratio).train
    arguments = make_trainer_arguments(
        Path("unused"), train, torch.device("cpu"), StepBatches([3] * 10, 2, 1, 0), False
    )
    assert arguments.get_warmup_steps(steps) == expected


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("epochs", [1.0, 0.01])
def test_a_training_of_one_step_trains(options, records, epochs, scheduler):
    run = options(epochs=epochs, lr_scheduler=scheduler)
    train_student(run, records[:4], [])
    (line,) = log_lines(run)
    assert (line["step"], line["learning_rate"]) == (1, 1e-3)
    before, after = load_file(Path(run.model) / "model.safetensors"), weights(run)
    assert all((after[name] - before[name]).abs().max() > 1e-5 for name in before if "proj.weight" in name)


def test_tokens_per_second_excludes_validation(options, records, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("distill.student.training_meter.time.monotonic", lambda: clock["now"])
    score = student_module.DistillTrainer.score
    read = []

    def take_a_second(self, model, examples, *more):
        clock["now"] += 1.0 if model.training else 1000.0
        if model.training:
            read.append(sum(len(one["prompt"]) + len(one["completion"]) for one in examples))
        return score(self, model, examples, *more)

    monkeypatch.setattr(student_module.DistillTrainer, "score", take_a_second)
    run = options(
        epochs=2.0, logging_steps=3, eval_steps=2, gradient_accumulation_steps=1
    )  # validates between two log lines
    train_student(run, records[:6], records[6:])
    second = [line for line in log_lines(run) if "loss" in line][1]
    assert second["step"] == 3
    assert second["tokens_per_second"] == pytest.approx(sum(read[1:3]) / 2, abs=0.1)


@pytest.mark.parametrize("lora", [None, 4], ids=["full", "lora"])
@pytest.mark.parametrize("killed_at", [1, 5, 7])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(options, records, monkeypatch, killed_at, lora):
    settings = {"epochs": 3.0, "save_steps": 2, "lora_rank": lora, "gradient_checkpointing": False}
    undisturbed = options(out="undisturbed", **settings)
    train_student(undisturbed, records, records[:2])

    run = options(out="killed", **settings)
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    assert not run.out.exists()
    train_student(run, records, records[:2])
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)
    steps = [(line["step"], "loss" in line) for line in log_lines(run)]
    assert steps == [(line["step"], "loss" in line) for line in log_lines(undisturbed)]
    assert not (run.checkpoints / "s/banks").exists()


@pytest.mark.parametrize("killed_at", [3, 4], ids=["within an epoch", "after an epoch"])
def test_a_run_resumes_with_its_steps_split_differently(options, records, monkeypatch, caplog, killed_at):
    settings = {"epochs": 3.0, "save_steps": 1, "logging_steps": 1, "optimizer": "sgd", "learning_rate": 0.5}
    whole = options(out="whole", batch_size=4, gradient_accumulation_steps=2, **settings)
    train_student(whole, records, records[:2])
    run = options(out="killed", batch_size=4, gradient_accumulation_steps=2, **settings)
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    run = change_run(run, batch_size=2, gradient_accumulation_steps=4)
    with caplog.at_level("INFO"):
        train_student(run, records, records[:2])
    assert f"checkpoint-{killed_at}" in caplog.text.partition("resuming from")[2]
    assert_same_weights(weights(run), weights(whole), rtol=1e-5, atol=1e-6)
    assert [line.get("loss") for line in log_lines(run)] == [
        pytest.approx(line["loss"], rel=1e-5) if "loss" in line else None for line in log_lines(whole)
    ]


def test_a_run_on_changed_data_does_not_resume(options, records, monkeypatch, caplog):
    run = options(epochs=3.0, save_steps=2)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            train_student(run, records, [])
    (other,) = (run.checkpoints / "s/banks").glob("*/checkpoint-4")
    changed = [records[0] | {"messages": [*records[0]["messages"][:2], {"role": "assistant", "content": "other"}]}]
    with caplog.at_level("INFO"), monkeypatch.context() as patch:
        patch.setattr(student_module, "write_student", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train_student(run, changed + records[1:], [])
    assert "resuming from" not in caplog.text
    assert f"{other} belongs to other data, models or settings: it is not used" in caplog.text
    assert other.exists()  # until the student is written
    train_student(run, changed + records[1:], [])
    assert not (run.checkpoints / "s/banks").exists()


def test_incomplete_checkpoints_are_skipped(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step, text in ((2, '{"global_step": 2}'), (4, '{"global_step": 4}'), (6, '{"global_st')):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-8").mkdir()
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def expected_gradients(run, records, tokenizer, alpha, tau):
    """Norms of the gradients of both weighted terms with respect to all logits of a step, in float64 by autograd."""
    models = [AutoModelForCausalLM.from_pretrained(name).double() for name in (run.model, run.teacher.model)]
    chat, squares, count = ChatTemplate(tokenizer), torch.zeros(2, dtype=torch.float64), 0
    for record in records:
        system, prompt, answer = (message["content"] for message in record["messages"])
        start, end = chat.encode_prompt(system, prompt), chat.encode_completion(answer)
        with torch.no_grad():
            found = [model(torch.tensor([start + end])).logits[0, len(start) - 1 : -1] for model in models]
        student, teacher = found[0].requires_grad_(), (found[1][:, : len(tokenizer)] / tau).log_softmax(-1)
        own = (student[:, : len(tokenizer)] / tau).log_softmax(-1)
        terms = (
            (1 - alpha) * torch.nn.functional.cross_entropy(student, torch.tensor(end), reduction="sum"),
            alpha * tau**2 * (teacher.exp() * (teacher - own)).sum(),
        )
        squares += torch.stack([torch.autograd.grad(term, student)[0].square().sum() for term in terms])
        count += len(end)
    return (squares.sqrt() / count).tolist()


@pytest.mark.parametrize("lora", [None, 4], ids=["full", "lora"])
@pytest.mark.parametrize(("alpha", "is_weak"), [(0.5, False), (1e-3, True)])
def test_a_divergence_with_a_hundredth_of_the_gradient_is_told_of(
    options, records, tokenizer, caplog, alpha, is_weak, lora
):
    run = options(alpha=alpha, batch_size=3, gradient_accumulation_steps=4, warmup_ratio=0.0, lora_rank=lora)
    train_student(run, records, [])
    ce, kd = expected_gradients(run, records, tokenizer, alpha, 2.0)
    first, *others = log_lines(run)
    assert (first["ce_grad"], first["kd_grad"]) == (pytest.approx(ce, rel=1e-4), pytest.approx(kd, rel=1e-4))
    assert (kd / ce < MIN_GRADIENT_RATIO) == is_weak
    ce, kd = first["ce_grad"], first["kd_grad"]  # the same digits as in the warning
    wanted = f"is {kd:.2g}, {kd / ce:.2g} times the cross-entropy term's {ce:.2g}: the teacher's distribution has"
    assert caplog.text.count(wanted) == is_weak
    assert sum(wanted in warning for warning in first.get("warnings", [])) == is_weak
    assert ("- At the start of training, the gradient norm of the weighted" in (run.out / "README.md").read_text()) == (
        is_weak
    )
    assert not any("warnings" in line for line in others)


def test_a_resumed_run_keeps_the_warning_without_a_second_one(options, records, monkeypatch, caplog):
    run = options(alpha=1e-4, epochs=3.0, save_steps=2)
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    assert caplog.text.count("negligible influence") == 1
    train_student(run, records, records[:2])
    assert caplog.text.count("negligible influence") == 1
    assert [line["step"] for line in log_lines(run) if "warnings" in line] == [1]
    assert (run.out / "README.md").read_text().count("negligible influence") == 1


def test_the_comparison_of_the_gradients_does_not_change_the_student(options, records, monkeypatch, caplog):
    found = []
    for ratio in (0.0, math.inf):
        monkeypatch.setattr(training_meter, "MIN_GRADIENT_RATIO", ratio)
        run = options(out=f"out{ratio}")
        train_student(run, records, records[:2])
        found.append(weights(run))
        assert ("negligible influence" in caplog.text) == (ratio > 0)
    assert_same_weights(*found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ce", "kd", "earlier", "expected"),
    [
        (1.0, 0.009, [], True),
        (1.0, 0.0, [], True),
        (1.0, 0.011, [], False),
        (1.0, None, [], False),  # seqkd
        (0.0, 0.5, [], False),  # alpha is 1, or all steps are on-policy
        (1.0, 0.009, [{"val_loss": 1.0}, {"ce_grad": 0.0, "kd_grad": 0.5}], True),
        (1.0, 0.009, [{"ce_grad": 1.0, "kd_grad": 0.5}], False),
    ],
)
def test_the_first_line_with_both_terms_decides(ce, kd, earlier, expected):
    assert bool(describe_weak_divergence({"ce_grad": ce, "kd_grad": kd}, earlier)) == expected


def test_the_folder_is_an_ordinary_model(options, records):
    run = options(lora_rank=4, precision="bf16")
    train_student(run, records, records[:2])
    model = AutoModelForCausalLM.from_pretrained(run.out)
    tokenizer = AutoTokenizer.from_pretrained(run.out)
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template
    names = {path.name for path in run.out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "adapter"} <= names
    card = (run.out / "README.md").read_text()
    assert "base_model:" in card
    assert "10 training and\n2 validation records" in card
    merged, base = weights(run), AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.bfloat16).state_dict()
    assert any(not torch.equal(merged[name], base[name]) for name in merged)


@pytest.mark.parametrize("lora", [None, 4], ids=["full", "lora"])
def test_a_student_of_a_base_model_stops_in_other_programs(options, records, tmp_path, lora):
    base = save_base_model(tmp_path / "base", vocabulary=336, seed=2)
    assert count_generated(base, 2) == 5
    run = options(model=base, epochs=1.0, lora_rank=lora)
    train_student(run, records, [])
    assert [count_generated(run.out, token) for token in (0, 2)] == [1, 1]
    assert AutoTokenizer.from_pretrained(run.out).eos_token == "<|im_end|>"


def test_a_student_whose_checkpoints_have_shards_is_one_file(options, records, monkeypatch):
    """transformers divides weights above 50 GB; here the limit is 20 KB."""
    save = PreTrainedModel.save_pretrained

    def sharded(self, *args, **settings):
        save(self, *args, **{"max_shard_size": "20KB"} | settings)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", sharded)
    run = options(save_steps=2, epochs=3.0, best_checkpoint=True)
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    assert list((run.checkpoints / "s/banks").glob("*/checkpoint-4/model.safetensors.index.json"))
    train_student(run, records, records[:2])
    assert [path.name for path in run.out.glob("*.safetensors*")] == ["model.safetensors"]


def test_a_student_that_is_not_written_keeps_its_checkpoints(options, records, monkeypatch):
    run = options(save_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: None)
        patch.setattr("distill.student.trainer.DistillTrainer._save", lambda *_, **__: None)
        with pytest.raises(InputError, match="found no such file"):
            train_student(run, records, [])
    assert not run.out.exists()
    assert list((run.checkpoints / "s/banks").glob("*/checkpoint-*"))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_teacher_is_close_to_the_exact_one(options, records, quantization, tokenizer, tmp_path):
    # bitsandbytes quantizes to nf4 in blocks of 64, which must divide a row.
    teacher = save_model(tmp_path / "wide", tokenizer, hidden=64, scale=4.0)
    exact, run = (options(out=out, epochs=1.0, teacher_model=teacher) for out in ("exact", "quantized"))
    run = change_run(run, teacher_quantization=quantization)
    train_student(exact, records, [])
    train_student(run, records, [])
    kd, exact_kd = log_lines(run)[0]["kd"], log_lines(exact)[0]["kd"]
    assert kd != exact_kd
    assert kd == pytest.approx(exact_kd, rel=0.3)


def test_an_adapter_changes_the_teacher(options, records, tmp_path):
    from peft import LoraConfig, get_peft_model

    plain = options(out="plain", epochs=1.0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(plain.teacher.model),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    run = options(epochs=1.0, teacher_adapter=[str(tmp_path / "adapter")])
    train_student(plain, records, [])
    train_student(run, records, [])
    assert log_lines(run)[0]["kd"] != pytest.approx(log_lines(plain)[0]["kd"], rel=1e-3)


def test_different_tokenizers_are_rejected_before_training(options, records, tmp_path):
    other = build_tokenizer(texts=["wholly other words here"] * 9, size=330)
    run = options(teacher_model=save_model(tmp_path / "other", other))
    with pytest.raises(InputError, match="same tokenizer"):
        train_student(run, records, [])
    train_student(change_run(run, method="seqkd"), records, [])


def test_models_whose_logits_do_not_follow_their_configuration_are_rejected(options, records, tmp_path, tokenizer):
    folder = Path(save_model(tmp_path / "capped", tokenizer))
    config = json.loads((folder / "config.json").read_text()) | {"final_logit_softcapping": 30.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="Qwen2ForCausalLM is not supported.*its logits differ by up to"):
        train_student(options(model=str(folder)), records, [])


def test_fp16_on_the_cpu_is_rejected(options, records):
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        train_student(options(precision="fp16"), records, [])


def test_a_missing_model_folder_is_named(options, records):
    with pytest.raises(InputError, match="no-such/deep/folder: expected a local model folder"):
        train_student(options(model="no-such/deep/folder"), records, [])


def break_loss(monkeypatch, when):
    """Make the loss of a micro-batch infinite if `when(trainer, examples)`."""
    score = student_module.DistillTrainer.score

    def broken(self, model, examples, *more):
        terms = score(self, model, examples, *more)
        return terms._replace(loss=terms.loss + float("inf")) if when(self, examples) else terms

    monkeypatch.setattr(student_module.DistillTrainer, "score", broken)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_records(options, records, monkeypatch):
    bad = records[4]["uid"]
    run = options(epochs=4.0, save_steps=1, logging_steps=100)
    break_loss(monkeypatch, lambda trainer, batch: trainer.state.global_step == 4 and bad in {x["uid"] for x in batch})
    with pytest.raises(InputError, match="the loss is not finite") as error:
        train_student(run, records, [])
    text = str(error.value)
    assert text.startswith("step 5:")
    assert bad in text
    (folder,) = (run.checkpoints / "s/banks").iterdir()
    assert find_last_checkpoint(folder) == folder / "checkpoint-4"
    assert f"the last checkpoint is {folder}/checkpoint-4" in text


def test_a_gradient_that_is_not_finite_stops_the_run(options, records, monkeypatch):
    run = options(epochs=4.0, save_steps=1)
    clip = student_module.DistillTrainer._clip_grad_norm

    def broken(self, model):
        return clip(self, model) * (float("nan") if self.state.global_step == 2 else 1.0)

    monkeypatch.setattr(student_module.DistillTrainer, "_clip_grad_norm", broken)
    with pytest.raises(FloatingPointError, match="step 3: the gradient is not finite"):
        train_student(run, records, [])


def test_steps_that_the_gradient_scaler_skips_do_not_stop_the_run(options, records, monkeypatch):
    """fp16: the Trainer skips the first steps, which overflow until the scale is small enough."""
    run = options("seqkd", epochs=12.0)
    original = student_module.DistillTrainer

    def scaled(*args, **kwargs):
        trainer = original(*args, **kwargs)
        # Scale times loss overflows float32 until the scale has been halved a few times.
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        trainer.accelerator.native_amp = True
        return trainer

    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    monkeypatch.setattr(student_module, "DistillTrainer", scaled)
    train_student(run, records, [])
    first, last = log_lines(run)[0], log_lines(run)[-1]
    assert first["grad_norm"] is None
    assert last["grad_norm"] > 0
    assert last["loss"] < first["loss"]


def test_a_run_resumes_with_other_run_options(options, records, monkeypatch, caplog):
    run = options(epochs=3.0, save_steps=2)
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train_student(run, records, [])
    other = {"save_steps": 1, "save_total_limit": 1, "logging_steps": 1, "gradient_checkpointing": False}
    with caplog.at_level("INFO"):
        train_student(change_run(run, **other), records, [])
    assert "resuming from" in caplog.text


def test_the_trainer_uses_a_single_gpu(options, monkeypatch):
    def four_gpus(self):
        self._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(four_gpus))
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self.__dict__.setdefault("_n_gpu", 4)))
    arguments = make_trainer_arguments(
        Path("unused"), options().train, torch.device("cpu"), StepBatches([3] * 10, 2, 1, 0), False
    )
    assert arguments.train_batch_size == arguments.per_device_train_batch_size == 2


def test_mixed_precision_does_not_change_the_teachers_dtype(options, records, models, tokenizer):
    """The teacher's logits stay float32 if the student trains in bf16."""
    seen = []
    original = losses.exact_divergence

    def spy(logits, teacher_logits, objective):
        seen.append(teacher_logits.clone())
        return original(logits, teacher_logits, objective)

    mixed = options(precision="bf16", epochs=1.0, gradient_checkpointing=False, batch_size=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "exact_divergence", spy)
        train_student(mixed, records, [])
        train_student(options(out="plain", epochs=1.0, gradient_checkpointing=False, batch_size=10), records, [])
    half = len(seen) // 2
    assert half > 0
    torch.testing.assert_close(seen[0], seen[half], rtol=0, atol=0)


def test_long_records_are_left_out_and_counted(records, tokenizer, caplog):
    lengths = [
        len(example["prompt"]) + len(example["completion"])
        for example in encode_examples(records, ChatTemplate(tokenizer), None, 10_000)
    ]
    limit = sorted(lengths)[4]
    kept = encode_examples(records, ChatTemplate(tokenizer), None, limit)
    assert len(kept) == sum(length <= limit for length in lengths) < len(records)
    assert f"{len(records) - len(kept)} of {len(records)} records are left out" in caplog.text
    with pytest.raises(InputError, match="max_length"):
        encode_examples(records, ChatTemplate(tokenizer), None, 3)


def test_truncated_answers_have_no_end_token(records, tokenizer):
    cut = [records[0] | {"finish_reason": "length"}, records[1]]
    one, other = encode_examples(cut, ChatTemplate(tokenizer), None, 1000)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in one["completion"]
    assert other["completion"][-1] == end


def test_records_with_tokens_unknown_to_the_teacher_are_left_out(records, tokenizer, caplog):
    student = build_tokenizer()
    student.add_tokens(["<new>"])
    messages = [*records[0]["messages"][:2], {"role": "assistant", "content": "a <new> one"}]
    changed = [records[0] | {"messages": messages}, *records[1:]]
    kept = encode_examples(changed, ChatTemplate(student), ChatTemplate(tokenizer), 1000, vocabulary=len(tokenizer))
    assert len(kept) == len(records) - 1
    assert "1 of 10 records are left out: they have an answer with a token" in caplog.text


def test_validation_records_that_are_too_long_do_not_end_the_training(options, records, caplog):
    long = records[0] | {"messages": [{**one, "content": one["content"] * 400} for one in records[0]["messages"]]}
    run = options("seqkd", epochs=1.0, max_length=500)
    train_student(run, records[1:], [long])
    assert "1 of 1 validation records are left out: they are longer than max_length = 500" in caplog.text
    assert "the training is not validated" in caplog.text
    with pytest.raises(InputError, match="no validation records are left: 1 of 1 are longer than max_length = 500"):
        train_student(options("seqkd", "other", max_length=500, best_checkpoint=True), records[1:], [long])


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_missing_weights_are_rejected(options, records, which):
    run = options()
    path = Path(run.model if which == "student" else run.teacher.model) / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "layers.1." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"are missing, first model\.layers\.1"):
        train_student(run, records, [])


def test_a_truncated_weights_file_is_reported(options, records):
    run = options()
    path = Path(run.model) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot load the model"):
        train_student(run, records, [])


def test_an_adapter_of_another_model_is_rejected(options, records, tmp_path):
    from peft import LoraConfig, get_peft_model

    other = get_peft_model(build_model(hidden=64), LoraConfig(r=2, target_modules="all-linear"))
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="does not fit"):
        train_student(options(teacher_adapter=[str(tmp_path / "adapter")]), records, [])
    with pytest.raises(InputError, match="no adapter_config.json"):
        train_student(options(teacher_adapter=[str(tmp_path / "absent")]), records, [])


def test_each_model_has_the_prompt_in_its_own_chat_template(records, tokenizer):
    teacher = build_tokenizer(
        template="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}[assistant] "
    )
    examples = encode_examples(
        records, ChatTemplate(tokenizer), ChatTemplate(teacher), 1000, vocabulary=len(tokenizer)
    )[:3]
    completions = [example["completion"] for example in examples]
    prompts = [[example[name] for example in examples] for name in ("prompt", "teacher_prompt")]
    batches = [collate(some, completions, 0) for some in prompts]
    assert batches[0]["targets"].equal(batches[1]["targets"])
    text = tokenizer.decode(batches[1]["input_ids"][0], skip_special_tokens=False)
    assert text.startswith("[system] You are a manager.<|im_end|>[user]")


def test_positions_precede_their_completion_tokens(records, tokenizer):
    """Labels are shifted: the last token of the prompt predicts the first token of the answer."""
    examples = encode_examples(records, ChatTemplate(tokenizer), None, 1000)[:3]
    batch = collate([example["prompt"] for example in examples], [example["completion"] for example in examples], 0)
    length = batch["input_ids"].shape[1]
    found = [divmod(place, length) for place in batch["positions"].tolist()]
    wanted = [
        (row, len(example["prompt"]) + offset - 1)
        for row, example in enumerate(examples)
        for offset in range(len(example["completion"]))
    ]
    assert found == wanted
    assert [batch["input_ids"][row, place + 1].item() for row, place in wanted] == batch["targets"].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_the_padding_side_does_not_change_the_loss(models, records, tokenizer, method):
    """Left padding with mask and position ids, compared with the right padding of `collate`, which has neither."""
    model, teacher = (AutoModelForCausalLM.from_pretrained(models[name]) for name in ("student", "teacher"))
    examples = encode_examples(records, ChatTemplate(tokenizer), None, 1000)
    prompts, completions = ([example[name] for example in examples] for name in ("prompt", "completion"))
    batch = collate(prompts, completions, 0)
    length = batch["input_ids"].shape[1]
    sizes = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    assert len(set(sizes)) > 1
    shifts = [length - size for size in sizes]
    tokens = torch.stack([row.roll(shift) for row, shift in zip(batch["input_ids"], shifts, strict=True)])
    mask = torch.stack([(torch.arange(length) >= shift).long() for shift in shifts])
    moved = torch.cat(
        [
            place + shift
            for place, shift in zip(batch["positions"].split(list(map(len, completions))), shifts, strict=True)
        ]
    )
    objective = losses.Objective(method, 2.0, 0.5, give_parameters(method), len(tokenizer))
    left = {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    found = []
    for inputs, positions in (({"input_ids": batch["input_ids"]}, batch["positions"]), (left, moved)):
        rows = take_rows(model.model(**inputs).last_hidden_state, positions)
        with torch.no_grad():
            of_teacher = take_rows(teacher.model(**inputs).last_hidden_state, positions)
        known = losses.ExactTeacher(of_teacher, teacher.lm_head) if method != "seqkd" else None
        terms = distillation_loss(rows, model.lm_head, batch["targets"], known, objective)
        found.append([terms.loss, *torch.autograd.grad(terms.loss, list(model.parameters()))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


class Synchronisations(TorchDispatchMode):
    """Counts synchronisations with a GPU: reading a number from a tensor."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["seqkd", "forward_kl"])
def test_a_step_does_not_synchronise_with_the_gpu(options, records, monkeypatch, method, checkpointing):
    counts = []
    step = student_module.DistillTrainer.training_step

    def watched(self, *arguments):
        with Synchronisations() as mode:
            loss = step(self, *arguments)
        counts.append(mode.count)
        return loss

    monkeypatch.setattr(student_module.DistillTrainer, "training_step", watched)
    train_student(options(method, gradient_checkpointing=checkpointing), records, [])
    assert counts == [0] * len(counts)
    with Synchronisations() as mode:
        assert torch.ones(2).sum() == 2  # counted as one
    assert mode.count == 1


def test_the_adapter_lists_its_modules_in_order(options, records):
    """PEFT lists them in a random order, which would change the fingerprint of the adapter."""
    run = options(lora_rank=2, epochs=1.0)
    train_student(run, records, [])
    settings = json.loads((run.out / "adapter/adapter_config.json").read_text())
    assert len(settings["target_modules"]) == 14  # seven in each of two layers
    assert settings["target_modules"] == sorted(settings["target_modules"])


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_on_the_head_does_not_change_the_embeddings(options, records, tokenizer, tmp_path, precision, tied):
    student = save_model(tmp_path / "with_head", tokenizer, vocabulary=336, hidden=16, seed=2, tied=tied)
    run = options(model=student, lora_rank=2, lora_target=["lm_head", "q_proj"], lora_dropout=0.0, epochs=20.0)
    run = change_run(run, precision=precision, learning_rate=3e-2)
    train_student(run, records, [])
    assert log_lines(run)[-1]["loss"] < 0.9 * log_lines(run)[0]["loss"]
    merged = AutoModelForCausalLM.from_pretrained(run.out, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(student)
    before = base.get_input_embeddings().weight.clone()
    adapted = PeftModel.from_pretrained(base, run.out / "adapter").eval()
    tokens = torch.arange(10, 40)[None]
    with torch.no_grad():
        found, wanted = merged(tokens).logits, adapted(tokens).logits
    rounding = {"fp32": 1e-4, "bf16": 0.05}[precision]
    assert (found - wanted).norm() < rounding * wanted.norm()
    torch.testing.assert_close(merged.get_input_embeddings().weight, before, rtol=2**-8, atol=1e-4)
    assert (merged.get_output_embeddings().weight - before).abs().max() > 1e-3 or not tied


@pytest.mark.parametrize("target", [["embed_tokens", "q_proj"], ["embed_tokens", "lm_head"]], ids=" and ".join)
def test_lora_on_tied_embeddings_writes_the_student_that_was_trained(options, records, tokenizer, tmp_path, target):
    """The merged student has the validation loss of the last line of the log."""
    student = save_model(tmp_path / "tied", tokenizer, vocabulary=336, hidden=16, seed=2, tied=True)
    run = options(model=student, lora_rank=2, lora_target=target, lora_dropout=0.0, epochs=20.0, method="seqkd")
    run = change_run(run, learning_rate=3e-2)
    train_student(run, records[2:], records[:2])
    logged = [line["val_ce"] for line in log_lines(run) if "val_ce" in line][-1]
    merged = AutoModelForCausalLM.from_pretrained(run.out, dtype=torch.float32)
    total = count = 0
    for record in records[:2]:
        system, prompt, answer = (message["content"] for message in record["messages"])
        chat = ChatTemplate(tokenizer)
        ids, completion = chat.encode_prompt(system, prompt), chat.encode_completion(answer)
        with torch.no_grad():
            logits = merged(torch.tensor([ids + completion])).logits[0, len(ids) - 1 : -1].double()
        total -= logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum().item()
        count += len(completion)
    assert logged == pytest.approx(total / count, rel=1e-4)
