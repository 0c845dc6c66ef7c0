"""Benchmark tasks of lm-evaluation-harness on a tiny model, against likelihoods that transformers computes."""

import logging
import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from benchmark_tasks import QUESTIONS, write_tasks
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_tasks
from distill.common.errors import InputError
from distill.evaluation import options as declared
from distill.evaluation.task_scores import read_run

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed (requirements-tasks.txt)"
)


@pytest.fixture(autouse=True)
def same_environment():
    """The harness sets variables of the environment, with which jobs of other tests would start another way."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run(tmp_path, models, monkeypatch):
    """Run tasks on the student; returns the scores of the documents by metric."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = write_tasks(tmp_path / "tasks")

    def run(*options, model="student"):
        files = tmp_path / "documents.jsonl", tmp_path / "lm_eval.json"
        argv = ["--model", models[model], "--dtype", "float32", "--device", "cpu", "--tasks-path", folder]
        argv += ["--cache", tmp_path / "cache", "--out", files[0], "--results-out", files[1], "--tasks", *options]
        run_tasks.main([str(one) for one in argv])
        return read_run(*files)

    return run


def measure(path):
    """Whether the first choice of each question is the most likely one, from plain logits."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    def likelihood(question, choice):
        prompt, whole = (tokenizer(text)["input_ids"] for text in (question, question + choice))
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return sum(logits[place - 1, whole[place]].item() for place in range(len(prompt), len(whole)))

    found = []
    for one in QUESTIONS:
        text = f"Question: {one['question']}\nAnswer:"
        found.append(float(np.argmax([likelihood(text, f" {choice}") for choice in one["choices"]]) == one["answer"]))
    return found


def test_each_document_is_scored_by_the_models_likelihoods(run, models):
    scores = run("plus_one", "plus_one_text", "plus_one_likelihood")
    assert scores["plus_one/acc"].values.tolist() == measure(models["student"])
    assert scores["plus_one/acc"].value == pytest.approx(np.mean(measure(models["student"])))
    assert len(set(scores["plus_one/acc"].documents)) == scores["plus_one/acc"].n == len(QUESTIONS)
    # The bits of all texts over their bytes are no mean over documents.
    assert scores["plus_one_likelihood/bits_per_byte"].documents == []
    assert scores["plus_one_likelihood/bits_per_byte"].value > 0


def test_a_group_stands_for_its_tasks(run, models):
    scores = run("plus")
    assert list(scores) == ["plus/acc"]
    assert scores["plus/acc"].value == pytest.approx(np.mean(measure(models["student"])))


def test_fewer_documents_and_the_chat_template(run):
    scores = run("plus_one", "--tasks-limit", "5", "--tasks-chat-template")
    assert scores["plus_one/acc"].n == len(scores["plus_one/acc"].documents) == 5


def test_a_second_run_asks_for_no_response_again(run, caplog):
    caplog.set_level(logging.INFO)
    first = run("plus_one", "plus_one_text")
    caplog.clear()
    again = run("plus_one", "plus_one_text")
    remaining = [record.message for record in caplog.records if "Requests remaining" in record.message]
    assert remaining == [f"Cached requests: {count}, Requests remaining: 0" for count in (36, 12)]
    assert again["plus_one/acc"].values.tolist() == first["plus_one/acc"].values.tolist()
    caplog.clear()
    run("plus_one", model="teacher")  # another model finds nothing
    assert "Cached requests: 0, Requests remaining: 36" in caplog.messages


def test_unknown_and_repeated_tasks_are_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr("distill.evaluation.task_run.build_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"evaluation\.tasks: expected tasks or groups .*found minus_one; `lm-eval ls"):
        run("plus_one", "minus_one")
    with pytest.raises(InputError, match=r"evaluation\.tasks: plus, plus_one cannot be loaded: Duplicate task"):
        run("plus", "plus_one")


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setattr(declared, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match="expected the package lm_eval, which is not installed: run `make setup-tasks`"
    ):
        run("plus_one")
