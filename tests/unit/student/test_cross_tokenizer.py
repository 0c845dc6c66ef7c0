"""Training from a teacher with another tokenizer, by every signal."""

import logging

import pytest
import torch
from tiny import CHATML, SPECIAL, build_tokenizer, save_model
from training_runs import change_run, log_lines, make_run

import compute_signal as signal_script
from distill.common.errors import InputError
from distill.student.options import SIGNALS
from distill.student.train_student import train_student
from distill.student.training_examples import load_teacher
from distill.teacher.compute_signal import compute_signal

OTHER_TEXTS = ["You are a manager of holdings.", "holding_log_delta thinking answer answers", "change 0.1 0.2 0.3"] * 3


@pytest.fixture
def models(tmp_path, tokenizer):
    """A teacher whose tokens, ids and end of turn are others than the student's."""
    template = CHATML.replace("<|im_end|>", "<|eot|>")
    special = [*reversed(SPECIAL), "<|eot|>"]
    other = build_tokenizer(OTHER_TEXTS, 330, special, template, "<|eot|>")
    return {
        "teacher": save_model(tmp_path / "teacher", other, vocabulary=352, hidden=32, seed=1, scale=40.0),
        "student": save_model(tmp_path / "student", tokenizer, vocabulary=336, hidden=16, seed=2),
    }


@pytest.fixture
def run_of(tmp_path, models, records):
    """A training run by a signal, which is computed if it is a cached one."""

    def make(signal, out="out", teacher=None, **changes):
        chosen = models | ({"teacher": teacher} if teacher else {})
        run = make_run(tmp_path, chosen, "forward_kl", out)
        changes = {
            "cross_tokenizer": True,
            "signal": signal,
            "epochs": 6,
            "learning_rate": 2e-2,
            "alpha": 1.0,
        } | changes
        if signal == "online":
            return change_run(run, **changes)
        argv = ["--data", "unused", "--kind", signal, "--out", str(tmp_path / signal), "--model", chosen["teacher"]]
        argv += ["--examples", str(tmp_path / "examples")]
        argv += ["--dtype", "float32", "--device", "cpu"]
        argv += ["--top-k", "16", "--temperatures", "2.0"] if signal == "topk" else []
        compute_signal(vars(signal_script.parse_args(argv)), records, [])
        top_k = {"top_k": 16} if signal == "topk" else {}
        return change_run(run, signal_folders=[str(tmp_path / signal)], **top_k, **changes)

    return make


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_divergence_falls(run_of, records, signal, caplog):
    caplog.set_level(logging.INFO)
    run = run_of(signal)
    train_student(run, [records[:8]], [records[8:]])
    lines = [line for line in log_lines(run) if "kd" in line]
    assert 0 < lines[-1]["kd"] < 0.8 * lines[0]["kd"]
    assert "tokens are common to both vocabularies" in caplog.text
    assert "spans of equal bytes" in caplog.text
    card = (run.out / "README.md").read_text()
    assert "| `cross_tokenizer` | `true` |" in card
    assert "where the same text starts in both\ntokenizations" in card


def test_hidden_states_give_the_loss_of_the_teacher_in_memory(run_of, records):
    found = []
    for signal in ("online", "hidden"):
        run = run_of(signal, out=signal)
        train_student(run, [records], [])
        found.append([line["kd"] for line in log_lines(run) if "kd" in line])
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_the_same_tokenizer_is_refused(run_of, models, tokenizer, tmp_path):
    from distill.models.load import load_chat

    same = save_model(tmp_path / "same", tokenizer, vocabulary=352, hidden=32)
    run = run_of("online", teacher=same)
    with pytest.raises(InputError, match="expected cross_tokenizer: false, since teacher .* have the same tokenizer"):
        load_teacher(run, load_chat(run.model), torch.device("cpu"))
    run = run_of("online", cross_tokenizer=False)
    with pytest.raises(InputError, match="set cross_tokenizer: true"):
        load_teacher(run, load_chat(run.model), torch.device("cpu"))
