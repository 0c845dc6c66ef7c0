"""Pre-emption, out of memory, early stopping, the best checkpoint, on-policy training, pooled students."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from running import SCRIPTS, environment
from training_runs import (
    Killed,
    assert_same_weights,
    callback_at,
    change_run,
    kill,
    kill_at,
    log_lines,
    make_arguments,
    train_student,
    weights,
    write_splits,
)
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from distill.common.errors import InputError
from distill.evaluation.likelihood import answer_likelihoods
from distill.generation.sampling import Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.chat import ChatTemplate
from distill.models.examples import encode_examples
from distill.student import train_student as student_module
from distill.student.checkpoints import find_last_checkpoint
from distill.student.on_policy import SampleBuffer
from distill.student.options import OnPolicyOptions
from distill.student.step_batches import StepBatches

TRAINER = student_module.DistillTrainer


# ---- SIGTERM ----


def test_sigterm_saves_the_current_step_and_the_resumed_run_is_the_same(options, records, monkeypatch):
    settings = {"epochs": 3.0, "save_steps": 100, "gradient_checkpointing": False}
    undisturbed, run = options(out="undisturbed", **settings), options(out="signalled", **settings)
    train_student(undisturbed, records, records[:2])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            callback_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(SystemExit) as stopped:
                train_student(run, records, records[:2])
        assert stopped.value.code == 143
        (folder,) = (run.checkpoints / "s/banks").iterdir()
        assert find_last_checkpoint(folder) == folder / "checkpoint-4"  # the step that received it
        assert not run.out.exists()
        train_student(run, records, records[:2])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)


def test_sigterm_stops_the_script_with_a_checkpoint(tmp_path, models, records):
    data = write_splits(tmp_path / "data", records, records[:2])
    arguments = [*make_arguments(tmp_path, models, data=data), "--epochs", "100000", "--save-steps", "1000000"]
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / "train_student.py", *arguments], stderr=file, stdout=file, env=environment()
        )
    end = time.monotonic() + 300
    while "step 2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=120) == 143
    assert "stopped by a signal; rerun the same command to resume at step" in log.read_text()
    assert list((tmp_path / "checkpoints_out").glob("s/banks/*/checkpoint-*/trainer_state.json"))


def test_sigterm_skips_a_validation_until_resume(options, records, monkeypatch):
    """The resumed run validates first: same weights and same log as an uninterrupted run."""
    settings = {"epochs": 3.0, "save_steps": 100, "gradient_checkpointing": False, "eval_steps": 3, "logging_steps": 1}
    undisturbed, run = options(out="undisturbed", **settings), options(out="signalled", **settings)
    train_student(undisturbed, records, records[:2])
    validated = []
    evaluate = TRAINER.evaluate
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(
                TRAINER, "evaluate", lambda self: (validated.append(self.state.global_step), evaluate(self))[1]
            )
            callback_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(SystemExit):
                train_student(run, records, records[:2])
            assert validated == []
        train_student(run, records, records[:2])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)
    one, other = ([line["step"] for line in log_lines(x) if "val_loss" in line] for x in (run, undisturbed))
    assert one == other


def test_sigterm_interrupts_a_validation(options, records, monkeypatch):
    settings = {"epochs": 3.0, "save_steps": 100, "gradient_checkpointing": False, "eval_steps": 3}
    undisturbed, run = options(out="undisturbed", **settings), options(out="signalled", **settings)
    train_student(undisturbed, records, records)
    scored = []
    score = TRAINER.score

    def signalled(self, model, examples, *scale):
        if not model.training:
            scored.append(examples)
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, model, examples, *scale)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TRAINER, "score", signalled)
            with pytest.raises(SystemExit) as stopped:
                train_student(run, records, records)
        assert (stopped.value.code, len(scored)) == (143, 1)
        (folder,) = (run.checkpoints / "s/banks").iterdir()
        assert find_last_checkpoint(folder) == folder / "checkpoint-3"
        train_student(run, records, records)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)
    assert len(log_lines(run)) == len(log_lines(undisturbed))


def test_incomplete_checkpoints_do_not_count_towards_save_total_limit(options, records, monkeypatch):
    """save_total_limit keeps the highest steps, which would all be incomplete ones."""
    run = options(epochs=4.0, save_steps=2, save_total_limit=1)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            train_student(run, records, [])
    (folder,) = (run.checkpoints / "s/banks").iterdir()
    for number in (90, 95):
        (folder / f"checkpoint-{number}").mkdir()
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train_student(run, records, [])
    assert [path.name for path in folder.iterdir()] == ["checkpoint-4"]


# ---- Out of memory ----


def run_out(monkeypatch, most):
    """Run out of memory with more than `most` records, after the backward pass has added their gradients."""
    score, sizes = TRAINER.score, []

    def limited(self, model, examples, *scale):
        terms = score(self, model, examples, *scale)
        if len(examples) > most and model.training:
            (terms.loss * scale[0]).backward()
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(examples))
        return terms

    monkeypatch.setattr(TRAINER, "score", limited)
    return sizes


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2)])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(
    options, records, monkeypatch, caplog, size, accumulation
):
    settings = {"epochs": 2.0, "batch_size": size, "gradient_accumulation_steps": accumulation, "optimizer": "sgd"}
    settings |= {"learning_rate": 0.5, "max_grad_norm": 0.0}
    undisturbed, run = options(out="undisturbed", **settings), options(out="short", **settings)
    train_student(undisturbed, records, [])
    sizes = run_out(monkeypatch, most=2)
    train_student(run, records, [])
    assert max(sizes) == 2
    assert_same_weights(weights(run), weights(undisturbed), rtol=1e-5, atol=1e-6)
    one, other = ([(line["loss"], line["completion_tokens"]) for line in log_lines(x)] for x in (run, undisturbed))
    assert one == [pytest.approx(line, rel=1e-5) for line in other]
    said = [record for record in caplog.records if "out of memory" in record.message]
    assert len(said) == {8: 2, 4: 1}[size]  # 8 → 4 → 2: once for each halving


def test_out_of_memory_in_a_validation_halves_its_batches(options, records, monkeypatch):
    settings = {"batch_size": 8, "gradient_accumulation_steps": 1}
    undisturbed, run = options(out="undisturbed", **settings), options(out="short", **settings)
    train_student(undisturbed, records, records)
    score = TRAINER.score

    def limited(self, model, examples, *scale):
        if len(examples) > 3 and not model.training:
            raise torch.OutOfMemoryError("out of memory")
        return score(self, model, examples, *scale)

    monkeypatch.setattr(TRAINER, "score", limited)
    train_student(run, records, records)
    one, other = ([line["val_loss"] for line in log_lines(x) if "val_loss" in line] for x in (run, undisturbed))
    assert one == [pytest.approx(loss, rel=1e-4) for loss in other]


def test_out_of_memory_in_the_optimizer_gives_advice(options, records, monkeypatch):
    def step(self, *_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(InputError, match="adamw_bnb_8bit"):
        train_student(options(), records, [])


def test_out_of_memory_with_one_record_gives_advice(options, records, monkeypatch):
    run_out(monkeypatch, most=0)
    with pytest.raises(InputError, match="gradient_checkpointing: true, lora"):
        train_student(options(batch_size=4), records, [])


def test_other_errors_are_not_handled_as_out_of_memory(options, records, monkeypatch):
    monkeypatch.setattr(TRAINER, "score", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        train_student(options(), records, [])


# ---- Early stopping and the best checkpoint ----


def scripted_validation(monkeypatch, losses):
    """Replace the measured validation losses."""
    log, given = TRAINER.log, iter(losses)

    def scripted(self, logs, start_time=None):
        if "val_loss" in logs:
            logs["val_loss"] = next(given)
        log(self, logs, start_time)

    monkeypatch.setattr(TRAINER, "log", scripted)


def test_early_stopping_after_validations_without_a_lower_loss(options, records, monkeypatch):
    run = options(epochs=10.0, early_stopping_patience=2)
    scripted_validation(monkeypatch, [3.0, 2.0, 2.5, 2.0, 1.0, 1.0])
    train_student(run, records, records[:2])
    assert [line["val_loss"] for line in log_lines(run) if "val_loss" in line] == [3.0, 2.0, 2.5, 2.0]


def test_a_resumed_run_that_had_stopped_early_does_not_train_on(options, records, monkeypatch):
    """Killed between its last step and writing the student."""
    settings = {"epochs": 10.0, "early_stopping_patience": 1, "eval_steps": 2, "save_steps": 2}
    undisturbed, run = options(out="undisturbed", **settings), options(out="killed", **settings)
    losses = [3.0, 2.0, 2.5, 0.5, 0.4]
    with monkeypatch.context() as patch:
        scripted_validation(patch, losses)
        train_student(undisturbed, records, records[:2])
    with monkeypatch.context() as patch:
        scripted_validation(patch, losses)
        patch.setattr(student_module, "write_student", lambda *_: kill())
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    with monkeypatch.context() as patch:
        scripted_validation(patch, losses[3:])
        train_student(run, records, records[:2])
    assert [line["step"] for line in log_lines(run) if "val_loss" in line] == [2, 4, 6]
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings", [{"epochs": 1.4}, {"epochs": 10.0, "early_stopping_patience": 1, "eval_steps": 2, "save_steps": 2}]
)
def test_a_training_killed_after_its_last_step_in_the_middle_of_an_epoch_makes_no_other_step(
    options, records, monkeypatch, settings
):
    """Each epoch has three steps."""
    undisturbed, run = options(out="undisturbed", **settings), options(out="killed", **settings)
    losses = [2.0, 2.5, 2.5]
    with monkeypatch.context() as patch:
        scripted_validation(patch, losses)
        train_student(undisturbed, records, records[:2])
    with monkeypatch.context() as patch:
        scripted_validation(patch, losses)
        patch.setattr(student_module, "write_student", lambda *_: kill())
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    train_student(run, records, records[:2])
    lines, expected = log_lines(run), log_lines(undisturbed)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    assert expected[-1]["step"] % 3 != 0
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)


def test_a_validation_loss_that_is_not_finite_stops_the_run(options, records, monkeypatch):
    score = TRAINER.score

    def broken(self, model, examples, *scale):
        terms = score(self, model, examples, *scale)
        return terms if model.training else terms._replace(loss=terms.loss * float("nan"))

    monkeypatch.setattr(TRAINER, "score", broken)
    with pytest.raises(InputError, match="step 3: the validation loss is not finite"):
        train_student(options(), records, records[:2])


def test_the_best_checkpoint_is_kept_also_after_a_kill(options, records, monkeypatch):
    losses = [3.0, 1.0, 2.0, 2.5]
    settings = {"epochs": 4.0, "save_total_limit": 1, "save_steps": 3}
    best, run = options(out="best", best_checkpoint=True, **settings), options(out="killed", **settings)
    run = change_run(run, best_checkpoint=True)
    # The weights after two of four epochs, with the learning rate schedule of four.
    two = options(out="two", **settings)
    with monkeypatch.context() as patch:
        scripted_validation(patch, losses[:2])
        kill_at(patch, 6)
        with pytest.raises(Killed):
            train_student(change_run(two, best_checkpoint=True), records, records[:2])
    (folder,) = (two.checkpoints / "s/banks").iterdir()
    wanted = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-6").state_dict()
    for options_, killed_at in ((best, None), (run, 10)):
        with monkeypatch.context() as patch:
            scripted_validation(patch, losses)
            if killed_at:
                kill_at(patch, killed_at)
                with pytest.raises(Killed):
                    train_student(options_, records, records[:2])
        with monkeypatch.context() as patch:
            scripted_validation(patch, losses[3:] if killed_at else losses)
            train_student(options_, records, records[:2])
        assert_same_weights(weights(options_), {name: wanted[name] for name in weights(options_)}, rtol=0, atol=0)


# ---- On-policy ----


ON_POLICY = {"on_policy_fraction": 0.5, "on_policy_steps": 4, "on_policy_max_new_tokens": 12}


def buffer(examples, fraction=0.5, seed=1, start=0.0):
    options = OnPolicyOptions(fraction=fraction, start=start, steps=4, max_new_tokens=6, temperature=1.0)
    batches = StepBatches([1] * len(examples), 2, 1, 0)
    return SampleBuffer(options, examples, batches, None, seed=seed, max_length=100, vocabulary=300)


def test_the_configured_fraction_of_steps_is_on_policy():
    for fraction in (0.0, 0.3, 1.0):
        steps = [buffer([], fraction=fraction).is_on_policy(step, 2000) for step in range(2000)]
        assert sum(steps) / 2000 == pytest.approx(fraction, abs=0.04)


@pytest.mark.parametrize(("start", "steps", "first"), [(0, 7, 0), (0.29, 100, 29), (0.1, 30, 3), (0.999, 5, 4)])
def test_no_step_of_the_start_is_on_policy(start, steps, first):
    sampler = buffer([], fraction=1.0, start=start)
    assert [sampler.is_on_policy(step, steps) for step in range(steps)] == [step >= first for step in range(steps)]
    late, early = buffer([], start=start), buffer([])
    for step in range(first, steps):  # the same steps as without a start
        assert late.is_on_policy(step, steps) == early.is_on_policy(step, steps)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["jsd", "reverse_kl"])
def test_on_policy_steps_train_on_the_students_own_answers(options, records, tokenizer, monkeypatch, method, precision):
    seen = []
    score = TRAINER.score

    def spy(self, model, examples, *scale):
        terms = score(self, model, examples, *scale)
        seen.append((self.state.global_step, examples, terms))
        return terms

    monkeypatch.setattr(TRAINER, "score", spy)
    run = options(method, epochs=4.0, precision=precision, **ON_POLICY)
    train_student(run, records, [])
    sampled = {step for step, examples, _ in seen if examples[0].get("is_sampled")}
    sampler = buffer([], seed=42)
    assert sampled == {step for step in range(12) if sampler.is_on_policy(step, 12)}
    assert 0 < len(sampled) < 12
    own = {one["uid"]: one["completion"] for one in encode_examples(records, ChatTemplate(tokenizer), None, 1000)}
    for step, examples, terms in seen:
        for example in examples if step in sampled else []:
            assert 1 <= len(example["completion"]) <= 12
            assert example["completion"] != own[example["uid"]]
            assert terms.loss.item() == pytest.approx(0.5 * 2.0**2 * terms.kd.item(), rel=1e-4)  # no cross-entropy


def test_one_round_of_sampling_serves_several_steps(options, records, monkeypatch):
    filled = []
    fill = SampleBuffer.fill
    monkeypatch.setattr(
        SampleBuffer, "fill", lambda self, *arguments: (filled.append(arguments[1:]), fill(self, *arguments))[1]
    )
    train_student(options("jsd", epochs=4.0, on_policy_fraction=1.0, on_policy_steps=5), records, [])
    assert filled == [(0, 12), (5, 12), (10, 12)]


def test_a_rank_without_records_in_a_step_samples_with_the_others(tmp_path, monkeypatch):
    """The round begins at step 1, the last of an epoch, whose only record the first rank has."""
    rounds = []

    def generate(self, model, places):
        rounds.append(places)
        return [[step, index] for step, index in places]

    monkeypatch.setattr(SampleBuffer, "generate", generate)
    examples, model = [{"index": index} for index in range(3)], torch.nn.Identity()

    def make():
        batches = StepBatches([1] * 3, 1, 2, 0, rank=1, ranks=2)
        options = OnPolicyOptions(fraction=1.0, steps=4)
        return SampleBuffer(options, examples, batches, None, seed=1, max_length=100, vocabulary=300)

    sampler = make()
    assert sampler.batches.find_step(1) == []
    assert sampler.sample(model, 1, 8, []) == []
    assert [step for step, _ in rounds[0]] == [2, 4]
    sampler.save(tmp_path, 1)
    resumed = make()
    resumed.load(tmp_path)
    for one in (sampler, resumed):
        (index,) = one.batches.find_step(2)
        assert one.sample(model, 2, 8, [examples[index]])[0]["completion"] == [2, index]
        assert one.sample(model, 3, 8, []) == []
    assert len(rounds) == 1


def test_a_sampled_answer_follows_the_students_distribution(models, tokenizer):
    """Frequencies of sampled first tokens, compared with the model's probabilities."""
    model = AutoModelForCausalLM.from_pretrained(models["student"])
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(12.0)
    prompt = tokenizer("me=12.5, profit=0.31: estimate")["input_ids"]
    examples = [{"uid": str(n), "prompt": prompt, "teacher_prompt": prompt, "index": n} for n in range(3000)]
    sampler = SampleBuffer(
        OnPolicyOptions(fraction=1.0, steps=1, max_new_tokens=1, temperature=1.0),
        examples,
        StepBatches([1] * 3000, 3000, 1, 0),
        tokenizer,
        seed=0,
        max_length=100,
        vocabulary=len(tokenizer),
    )
    drawn = sampler.sample(model, 0, 1, examples)
    counts = torch.bincount(torch.tensor([one["completion"][0] for one in drawn]), minlength=len(tokenizer))
    expected = model(torch.tensor([prompt])).logits[0, -1, : len(tokenizer)].softmax(-1)
    assert (counts / 3000 - expected).abs().sum() / 2 < 0.15  # total variation distance of 3,000 samples
    assert expected.max() > 0.02


@pytest.mark.parametrize("accumulation", [1, 4])
def test_on_policy_training_begins_where_it_is_configured(options, records, monkeypatch, caplog, accumulation):
    """Half of the 12 steps come first, however a step is split; log, training log and card say so."""
    caplog.set_level("INFO", logger="distill")
    sampled = set()
    sample = SampleBuffer.sample

    def spy(self, model, step, *rest):
        sampled.add(step)
        return sample(self, model, step, *rest)

    monkeypatch.setattr(SampleBuffer, "sample", spy)
    settings = {"batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation, "logging_steps": 4}
    run = options("jsd", epochs=4.0, on_policy_start=0.5, **settings, **(ON_POLICY | {"on_policy_fraction": 1.0}))
    train_student(run, records, [])
    assert sampled == set(range(6, 12))
    assert "step 7/12: on-policy sampling begins" in caplog.messages
    lines = {line["step"]: line["on_policy_steps"] for line in log_lines(run)}
    assert lines == {1: 0, 4: 0, 8: 2, 12: 4}
    card = (run.out / "README.md").read_text()
    assert "| `on_policy_start` | `0.5` |" in card
    assert "| `on_policy_steps` | 6 |" in card


@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("killed_at", [3, 7])
def test_an_on_policy_run_that_was_killed_ends_with_the_same_weights(options, records, monkeypatch, killed_at, start):
    settings = {"epochs": 4.0, "save_steps": 3, "gradient_checkpointing": False, "on_policy_start": start, **ON_POLICY}
    undisturbed, run = options("jsd", "undisturbed", **settings), options("jsd", "killed", **settings)
    train_student(undisturbed, records, [])
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            train_student(run, records, [])
    train_student(run, records, [])
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)
    one, other = ([line["on_policy_steps"] for line in log_lines(x)] for x in (run, undisturbed))
    assert one == other


def test_on_policy_training_with_sliding_window_attention(options, records, tokenizer, tmp_path):
    """These models generate with transformers' `generate`, which calls the model's forward."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=336, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, eos_token_id=2, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    run = options("jsd", model=str(tmp_path / "mistral"), epochs=1.0, **(ON_POLICY | {"on_policy_fraction": 1.0}))
    train_student(run, records, [])
    assert log_lines(run)[-1]["kd"] > 0


def test_on_policy_answers_respect_max_length(options, records, tokenizer):
    longest = max(
        len(example["prompt"]) + len(example["completion"])
        for example in encode_examples(records, ChatTemplate(tokenizer), None, 1000)
    )
    run = options("jsd", epochs=1.0, max_length=longest, on_policy_fraction=1.0, on_policy_max_new_tokens=400)
    train_student(run, records, [])
    assert log_lines(run)[-1]["loss"] > 0


# ---- Several categories ----


def test_a_pooled_student_learns_from_all_folders(options, records):
    run = options(epochs=30.0, learning_rate=1e-2, category="all")
    student_module.train_student(run, [records[:6], records[6:]], [records[:1], records[6:7]])
    lines = log_lines(run)
    assert lines[-1]["val_loss"] < 0.8 * next(line for line in lines if "val_loss" in line)["val_loss"]
    assert "10 training and\n2 validation records of all categories." in (run.out / "README.md").read_text()


def test_distillation_raises_the_likelihood_of_the_answers(options, records):
    run = options(epochs=40.0, learning_rate=1e-2)
    train_student(run, records, [])
    tests = [
        {"system": m[0]["content"], "prompt": m[1]["content"], "answer": m[2]["content"], "is_whole": True}
        for m in (record["messages"] for record in records)
    ]
    before, after = (
        sum(one.nll for one in answer_likelihoods(TransformersEngine(source, Sampling(), None), tests))
        for source in (ModelSource(str(path), dtype="float32", device="cpu") for path in (run.model, run.out))
    )
    assert after < 0.5 * before
