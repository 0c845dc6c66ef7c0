"""Answers to validation prompts during a training: what is written, that nothing else changes, and runaway answers."""

import json
import logging
import os
import signal

import pytest
import torch
from training_runs import Killed, assert_same_weights, log_lines, train_student, weights
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, TrainerCallback

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.student import train_student as student_module
from distill.student.train_student import make_samples
from distill.student.validation_samples import ValidationSamples, choose_records, measure_shape

TRAINER = student_module.DistillTrainer
MEASURED = ("tokens_per_second", "memory_mb", "reserved_mb")
GOOD = {"text": "one two three", "finished": True, "tokens": 4}
LOOP = {"text": "on and on " * 20, "finished": False, "tokens": 60}
SETTINGS = {"epochs": 3.0, "save_steps": 100, "validation_samples": 3, "validation_max_new_tokens": 12}
ON_POLICY = {"on_policy_fraction": 1.0, "on_policy_steps": 3, "on_policy_max_new_tokens": 6}


def read_samples(run):
    return [json.loads(line) for line in (run.out / "samples.jsonl").read_text().splitlines()]


def read_losses(run):
    """The training log without what the answers add and what the machine decides."""
    names = ("step", "loss", "ce", "kd", "grad_norm", "val_loss", "on_policy_steps")
    return [{name: line[name] for name in names if name in line} for line in log_lines(run)]


# ---- The samples ----


def test_a_conversation_is_asked_with_its_history(records, tokenizer):
    (record,) = records[:1]
    system, first, answer = record["messages"]
    turns = [first, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "The first."}]
    samples = ValidationSamples([record | {"messages": [system, *turns, answer]}], ChatTemplate(tokenizer), 12)
    (request,) = samples.requests
    assert request.conversation.messages == [system, *turns]
    assert samples.reference == measure_shape([answer["content"]], [samples.reference.truncated == 0])


def test_the_chosen_records_depend_on_their_uids_only(records):
    uids = {record["uid"] for record in records}
    chosen = choose_records(records, uids, 4)
    assert len({record["uid"] for record in chosen}) == 4
    assert choose_records(records[::-1], uids, 4) == chosen
    without = [record for record in records if record != chosen[0]]
    assert choose_records(without, uids, 3) == chosen[1:]
    assert choose_records(records, uids - {chosen[1]["uid"]}, 3) == [chosen[0], *chosen[2:]]
    twice = [*records, *(record | {"id": record["id"] + 100} for record in records)]
    assert choose_records(twice, uids, 4) == chosen
    assert choose_records(records, uids, 99) == choose_records(records, uids, 10)


def test_each_validation_writes_the_greedy_answers(options, records, tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="distill")
    run = options(**SETTINGS)
    train_student(run, records, records[:5])
    samples = read_samples(run)
    chosen = choose_records(records[:5], {record["uid"] for record in records[:5]}, 3)
    assert [(one["step"], one["uid"]) for one in samples] == [
        (step, record["uid"]) for step in (3, 6, 9) for record in chosen
    ]
    assert all("samples" not in line for line in log_lines(run))
    model = AutoModelForCausalLM.from_pretrained(run.out)
    chat = ChatTemplate(tokenizer)
    for record, sample in zip(chosen, samples[-3:], strict=True):
        system, prompt, _ = (message["content"] for message in record["messages"])
        ids = torch.tensor([chat.encode_prompt(system, prompt)])
        new = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()
        ended = chat.end_of_turn in new
        assert sample["tokens"] == len(new)
        assert sample["finished"] == ended
        assert sample["text"] == chat.decode_answer(new[:-1] if ended else new).rstrip("\N{REPLACEMENT CHARACTER}")
        assert any(message.startswith(f"{record['uid'][:8]} ({len(new)} tokens") for message in caplog.messages)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "seqkd", "lora_rank": 4, "lora_dropout": 0.3},
        {"method": "jsd", "gradient_checkpointing": True, **ON_POLICY},
        {"method": "jsd", "precision": "bf16"},
    ],
    ids=["dropout", "on-policy", "bf16"],
)
def test_samples_do_not_change_the_training(options, records, changes):
    settings = SETTINGS | {"eval_steps": 2, "logging_steps": 1} | changes
    method = settings.pop("method")
    run, other = options(method, "with", **settings), options(method, "without", **settings | {"validation_samples": 0})
    states = []
    for one in (run, other):
        train_student(one, records, records[:4])
        states.append(torch.get_rng_state())
    assert_same_weights(weights(run), weights(other), rtol=0, atol=0)
    assert torch.equal(*states)
    assert read_losses(run) == read_losses(other)
    assert len(read_samples(run)) == 3 * 5  # after steps 2, 4, 6, 8 and 9
    assert read_samples(other) == []


def test_samples_of_a_model_that_generates_in_padded_batches(options, records, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=336, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, attention_dropout=0.2, eos_token_id=2, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    settings = SETTINGS | {"model": str(tmp_path / "mistral")}
    run, other = options("jsd", "with", **settings), options("jsd", "without", **settings | {"validation_samples": 0})
    for one in (run, other):
        train_student(one, records, records[:4])
    assert_same_weights(weights(run), weights(other), rtol=0, atol=0)
    assert [one["tokens"] for one in read_samples(run)] == [12] * 9


@pytest.mark.parametrize("killed_at", [4, 8])
def test_a_resumed_run_has_each_sample_once(options, records, monkeypatch, killed_at):
    settings = SETTINGS | {"save_steps": 2, "eval_steps": 3, "gradient_checkpointing": False}
    undisturbed, run = options(out="undisturbed", **settings), options(out="killed", **settings)
    train_student(undisturbed, records, records[:4])

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == killed_at:
                raise Killed

    def build(*args, **kwargs):
        trainer = TRAINER(*args, **kwargs)
        trainer.add_callback(Kill())
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(student_module, "DistillTrainer", build)
        with pytest.raises(Killed):
            train_student(run, records, records[:4])
    train_student(run, records, records[:4])
    assert read_samples(run) == read_samples(undisturbed)
    assert len(read_samples(run)) == 3 * 3


def test_sigterm_interrupts_the_answers(options, records, monkeypatch):
    """The resumed run validates and answers again: every line stands in the log once."""
    settings = SETTINGS | {"gradient_checkpointing": False, "logging_steps": 1}
    undisturbed, run = options(out="undisturbed", **settings), options(out="signalled", **settings)
    train_student(undisturbed, records, records[:4])
    answer = ValidationSamples.answer

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, *arguments)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ValidationSamples, "answer", signalled)
            with pytest.raises(SystemExit):
                train_student(run, records, records[:4])
        train_student(run, records, records[:4])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)
    assert read_losses(run) == read_losses(undisturbed)
    assert read_samples(run) == read_samples(undisturbed)


def test_without_prompts_there_are_no_samples(options, records, tokenizer, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="distill")
    chat, config = ChatTemplate(tokenizer), AutoModelForCausalLM.from_pretrained(options().model).config
    examples = [{"uid": record["uid"], "prompt": [3] * 9} for record in records[:2]]
    make = lambda run, kept=examples: make_samples(run, records, kept, chat, config)  # noqa: E731
    assert [one.uid for one in make(options(**SETTINGS)).requests]
    assert make(options(**SETTINGS), []) is None
    too_long = [{"uid": records[0]["uid"], "prompt": [3] * config.max_position_embeddings}]
    assert make(options(**SETTINGS), too_long) is None
    assert make(options(**SETTINGS | {"validation_samples": 0})) is None
    assert not caplog.messages
    assert make(options(**SETTINGS, strategy="fsdp")) is None
    assert "no validation prompts are answered: strategy fsdp" in caplog.text


# ---- Answers that run away ----


def test_shape_by_hand():
    shape = measure_shape(["a b c d a b c d", "a b c d e", "x"], [True, False, True])
    assert shape == (pytest.approx(1 / 3), pytest.approx(1 / 7))  # of 5 + 2 4-grams, one occurred earlier
    assert measure_shape(["", "a"], [False, False]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("answers", "runs_away"),
    [
        ([GOOD] * 4, False),
        ([GOOD] * 3 + [GOOD | {"finished": False}], False),
        ([GOOD] * 2 + [GOOD | {"finished": False}] * 2, True),
        ([GOOD] * 3 + [LOOP | {"finished": True}], True),
        ([GOOD | {"text": "a b c d e f g h i j a b c d e f"}] * 4, False),  # 3 of 13 4-grams
        ([GOOD | {"text": "a b c d e f a b c d e f a"}] * 4, True),  # 4 of 10
    ],
)
def test_what_runs_away(records, tokenizer, answers, runs_away):
    samples = ValidationSamples(records[:4], ChatTemplate(tokenizer), 200)
    assert samples.reference.truncated == 0
    assert samples.reference.repetition < 0.05
    assert samples.measure(answers)["runs_away"] == runs_away


def test_references_that_are_cut_off_or_repetitive_allow_for_such_answers(records, tokenizer):
    chat = ChatTemplate(tokenizer)
    for cut in (
        ValidationSamples(records[:4], chat, 5),  # shorter than the references
        ValidationSamples([record | {"finish_reason": "length"} for record in records[:4]], chat, 200),
    ):
        assert cut.reference.truncated == 1
        assert not cut.measure([GOOD | {"finished": False}] * 4)["runs_away"]
    looping = [record | {"messages": [*record["messages"][:2], {"content": LOOP["text"]}]} for record in records[:4]]
    assert not ValidationSamples(looping, chat, 500).measure([LOOP | {"finished": True}] * 4)["runs_away"]


def script_answers(monkeypatch, *answers):
    """Answer the n-th validation's prompts by the n-th of these answers, and let its loss fall.

    Returns:
        The weights of each validation.
    """
    seen = []
    measure = TRAINER.measure_validation

    def measure_lower(self, model):
        return measure(self, model) | {"val_loss": 1 / self.state.global_step}

    monkeypatch.setattr(TRAINER, "measure_validation", measure_lower)

    def answer(self, model, *_):
        seen.append({name: one.clone() for name, one in model.state_dict().items()})
        return [{"uid": request.uid} | answers[len(seen) - 1] for request in self.requests]

    monkeypatch.setattr(ValidationSamples, "answer", answer)
    return seen


def test_a_warning_where_answers_begin_to_run_away(options, records, monkeypatch, caplog):
    script_answers(monkeypatch, GOOD, LOOP, LOOP, GOOD, LOOP)
    run = options("jsd", **SETTINGS | {"epochs": 5.0})
    train_student(run, records, records[:4])
    lines = [line for line in log_lines(run) if "val_loss" in line]
    assert [line["runs_away"] for line in lines] == [False, True, True, False, True]
    assert [len(line.get("warnings", [])) for line in lines] == [0, 1, 0, 0, 1]
    warning = lines[1]["warnings"][0]
    assert warning.startswith(
        "Step 6: the student's greedy answers to 3 validation prompts run away: 100% of them reach"
    )
    assert "12 tokens without an end of turn (references: " in warning
    assert caplog.messages.count(warning) == 1
    card = (run.out / "README.md").read_text()
    assert f"- {warning}" in card.replace("&lt;", "<")
    assert "| `val_truncated` | 1 |" in card
    assert "`val_repetition` the share of their 4-grams that are repetitions." in card


STOP = {"on_policy_runaway": "stop", "on_policy_start": 0.25, **ON_POLICY}  # of 12 steps, the first 3 are off-policy


@pytest.mark.parametrize("best", [False, True])
def test_a_runaway_student_stops_and_keeps_the_last_good_weights(options, records, monkeypatch, caplog, best):
    """Answers that run away before on-policy sampling has begun do not stop the training."""
    caplog.set_level(logging.INFO, logger="distill")
    seen = script_answers(monkeypatch, LOOP, GOOD, LOOP, GOOD)
    run = options("jsd", **SETTINGS | {"epochs": 4.0, "learning_rate": 1e-2, "best_checkpoint": best}, **STOP)
    train_student(run, records, records[:4])
    lines = [line for line in log_lines(run) if "val_loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert lines[2]["val_loss"] < lines[1]["val_loss"]  # the runaway student has the lowest
    assert lines[2]["warnings"][0].endswith("The training stops and keeps the weights of step 6.")
    assert any(message.startswith("keeping the model of step 6") for message in caplog.messages)
    assert_same_weights(weights(run), {name: seen[1][name] for name in weights(run)}, rtol=0, atol=0)
    assert "keeps the weights of step 6." in (run.out / "README.md").read_text()


def test_a_training_that_does_not_run_away_keeps_its_last_weights(options, records, monkeypatch):
    seen = script_answers(monkeypatch, LOOP, GOOD, GOOD, GOOD)
    run = options("jsd", **SETTINGS | {"epochs": 4.0, "eval_steps": 3}, **STOP)
    train_student(run, records, records[:4])
    assert [line["step"] for line in log_lines(run) if "val_loss" in line] == [3, 6, 9, 12]
    assert_same_weights(weights(run), {name: seen[3][name] for name in weights(run)}, rtol=0, atol=0)


@pytest.mark.parametrize("save_steps", [100, 3])
def test_a_stopped_run_that_was_killed_stops_again(options, records, monkeypatch, save_steps):
    """It is killed before it writes the student. The step that stopped it has no checkpoint."""
    settings = SETTINGS | {"epochs": 4.0, "save_steps": save_steps, "gradient_checkpointing": False}
    run = options("jsd", **settings, **STOP)
    with monkeypatch.context() as patch:
        seen = script_answers(patch, LOOP, GOOD, LOOP)
        patch.setattr(student_module, "write_student", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train_student(run, records, records[:4])
    with monkeypatch.context() as patch:
        again = script_answers(patch, LOOP)
        train_student(run, records, records[:4])
    assert len(again) == 1
    assert_same_weights(weights(run), {name: seen[1][name] for name in weights(run)}, rtol=0, atol=0)
    assert [line["runs_away"] for line in log_lines(run) if "runs_away" in line] == [True, False, True]


def test_without_any_good_weights_a_stop_is_an_error(options, records, monkeypatch):
    script_answers(monkeypatch, LOOP, LOOP)
    run = options("jsd", **SETTINGS | {"epochs": 4.0}, **STOP)
    with pytest.raises(InputError, match=r"on_policy_runaway: stop: Step 6: .* raise on_policy_start or set"):
        train_student(run, records, records[:4])
    assert not run.out.exists()


def test_a_stop_needs_validation_records(options, records):
    run = options("jsd", **SETTINGS, **STOP)
    with pytest.raises(InputError, match="stop: expected validation records"):
        train_student(run, records, [])
