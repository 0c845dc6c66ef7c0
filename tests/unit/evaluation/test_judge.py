"""The teacher's likelihood of other models' answers, and answers to fixed questions."""

import json
import math

import pytest
import torch
from running import read_lines
from training_runs import write_splits
from transformers import AutoModelForCausalLM

import answer_questions
import judge_answers
import predict_answers
import score_predictions
from distill.common.errors import InputError
from distill.common.files import write_jsonl
from distill.evaluation import likelihood
from distill.models.chat import ChatTemplate
from distill.models.load import load_tokenizer

FP32 = ["--dtype", "float32", "--device", "cpu"]
SHORT = ["--max-new-tokens", "9", "--temperature", "2"]


@pytest.fixture
def judged(tmp_path, models, records):
    """Predictions of a student and of the teacher, and the command line that judges them."""
    write_splits(tmp_path / "data", records, records[:2])
    paths = {"out": tmp_path / "scores/teacher/banks.judged.jsonl", "metrics": tmp_path / "banks.metrics.json"}
    for model in models:
        paths[model] = tmp_path / f"scores/{model}/banks.predictions.jsonl"
        argv = ["--test", tmp_path / "data/train.jsonl", "--category", "banks", "--model", models[model]]
        predict_answers.main(
            [*map(str, argv), *SHORT, "--out", str(paths[model]), *FP32, "--journal", str(tmp_path / "kept")]
        )
    argv = ["--predictions", paths["student"], paths["teacher"], "--model", models["teacher"], "--out", paths["out"]]
    paths["argv"] = [*map(str, argv), "--journal", str(tmp_path / "journal"), *FP32, "--batch-size", "1"]
    judge_answers.main(paths["argv"])
    return paths


def score(paths):
    argv = ["--predictions", paths["student"], "--judged", paths["out"]]
    argv += ["--out", paths["metrics"], "--metrics", "ppl", "fdistill", "--bootstrap", "50"]
    score_predictions.main(list(map(str, argv)))
    return json.loads(paths["metrics"].read_text())


def plain_perplexity(model, texts):
    """exp of the mean negative log-likelihood of all completion tokens, one record at a time in float64."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).double(), load_tokenizer(model)
    total = tokens = 0
    for record, answer, is_whole in texts:
        start = ChatTemplate(tokenizer).encode_prompt(record["system"], record["prompt"])
        end = ChatTemplate(tokenizer).encode_completion(answer, is_whole)
        with torch.no_grad():
            logp = loaded(torch.tensor([start + end])).logits[0].log_softmax(dim=-1)
        total -= sum(logp[len(start) + i - 1, token].item() for i, token in enumerate(end))
        tokens += len(end)
    return math.exp(total / tokens)


def test_coverage_and_likelihood_are_perplexities(judged, models):
    scores = score(judged)
    predictions = read_lines(judged["student"])
    answers = [(one, one["prediction"], one["finish_reason"] == "stop") for one in predictions]
    references = [(one, one["reference"], True) for one in predictions]
    assert "length" in {one["finish_reason"] for one in predictions}
    assert scores["fdistill_coverage"] == pytest.approx(plain_perplexity(models["teacher"], answers), rel=1e-4)
    assert scores["fdistill_likelihood"] == pytest.approx(plain_perplexity(models["student"], references), rel=1e-4)
    assert scores["fdistill_likelihood"] == scores["ppl"]
    low, high = scores["intervals"]["fdistill_coverage"]
    assert low < scores["fdistill_coverage"] < high


def test_without_judgements_there_is_likelihood_alone(judged):
    predictions = ["--predictions", str(judged["student"]), "--out", str(judged["metrics"])]
    score_predictions.main([*predictions, "--metrics", "fdistill"])
    assert list(json.loads(judged["metrics"].read_text())["n"]) == ["fdistill_likelihood"]


def test_every_prediction_must_have_been_judged(judged):
    first, *rest = read_lines(judged["out"])
    write_jsonl(judged["out"], rest)
    with pytest.raises(InputError, match=f"found none of student's uid {first['uid']}"):
        score(judged)
    write_jsonl(judged["out"], [first | {"nll": "much"}, *rest])
    with pytest.raises(InputError, match="judged.jsonl:1: nll: expected a finite number"):
        score(judged)


def test_a_killed_job_resumes_and_judges_changed_answers_only(judged, monkeypatch):
    before = judged["out"].read_text()
    read = []
    measure = likelihood.answer_likelihoods

    def note(engine, tests, *settings, **names):
        read.extend(test["uid"] for test in tests)
        return measure(engine, tests, *settings, **names)

    monkeypatch.setattr(likelihood, "answer_likelihoods", note)
    judge_answers.main(judged["argv"])
    assert not read  # the journal has all answers
    (journal,) = (judged["out"].parents[2] / "journal").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 12
    journal.write_bytes(b"".join(lines[:-10]) + lines[-10][:30])  # as after a kill in the middle of a line
    monkeypatch.setattr("distill.evaluation.likelihood.BATCHES_PER_PART", 4)
    judge_answers.main(judged["argv"])
    assert len(read) == 10
    assert judged["out"].read_text() == before
    first, *rest = read_lines(judged["student"])
    write_jsonl(judged["student"], [first | {"prediction": "me ↑"}, *rest])
    judge_answers.main(judged["argv"])
    assert read[10:] == [first["uid"]]


def test_questions_are_answered_in_order_and_a_killed_job_resumes(tmp_path, models, monkeypatch):
    out = tmp_path / "scores/banks.questions.jsonl"
    questions = ["me=9: why", "profit", "me=1", "'; drop"]
    argv = ["--questions", *questions, "--system", "You are a manager.", "--category", "banks", "--out", str(out)]
    argv += [
        "--journal",
        str(tmp_path / "journal"),
        "--model",
        models["student"],
        "--max-new-tokens",
        "8",
        "--temperature",
        "0",
        "--batch-size",
        "1",
        *FP32,
    ]
    from distill.generation import cached_engine as ledger

    answered = []

    def stop_at_the_third(request, generated):
        answered.append(request.prompt)
        if len(answered) == 3:
            raise KeyboardInterrupt
        return original(request, generated)

    original = ledger.to_record
    monkeypatch.setattr(ledger, "to_record", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        answer_questions.main(argv)
    assert not out.exists()
    answer_questions.main(argv)
    assert len(answered) == 5  # the third again, then the fourth; the first two were stored
    found = read_lines(out)
    assert [(one["id"], one["prompt"]) for one in found] == list(enumerate(questions, start=1))
    assert all(one["generated_tokens"] and one["system"] == "You are a manager." for one in found)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
