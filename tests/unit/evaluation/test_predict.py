"""Answers of evaluated models are stored: a job that Slurm requeues, or a forced one, generates no answer again."""

import logging

import pytest
from training_runs import write_splits

import answer_questions
import predict_answers
from distill.common.files import read_jsonl
from distill.evaluation.predict import predict
from distill.generation.sampling import Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine

FAST = ["--max-new-tokens", "9", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture
def run(tmp_path, models, records, caplog):
    """Predict or answer with the student; returns the output, and the numbers of stored and generated answers."""
    write_splits(tmp_path / "data", records, records[:2])
    asked = {
        predict_answers: ["--test", tmp_path / "data/train.jsonl"],
        answer_questions: ["--questions", "What is rain?", "What is snow?", "--system", "Answer."],
    }
    caplog.set_level(logging.INFO)

    def run(script, *options):
        caplog.clear()
        out = tmp_path / f"evaluation/student/banks.{script.__name__}.jsonl"
        argv = [*asked[script], "--category", "banks", "--model", models["student"], "--out", out, *options]
        script.main([*map(str, argv), *FAST, "--journal", str(tmp_path / "kept")])
        (line,) = [record.args for record in caplog.records if "in the cache" in record.msg]
        return [record for _, record in read_jsonl(out)], line[1:]

    return run


@pytest.mark.parametrize("script", [predict_answers, answer_questions])
def test_a_second_run_generates_nothing(script, run):
    first, (kept, asked) = run(script)
    assert (kept, asked) == (0, len(first))
    again, counts = run(script)
    assert counts == (len(first), 0)
    assert again == first


@pytest.mark.parametrize("script", [predict_answers, answer_questions])
def test_answers_of_other_code_or_models_are_not_used_and_are_removed(script, run, monkeypatch, tmp_path):
    first, _ = run(script)
    for options, digest in ((["--seed", "5"], "one"), ([], "two")):
        monkeypatch.setattr(script, "code_digest", lambda _, digest=digest: digest)
        assert run(script, *options)[1] == (0, len(first))
        ((folder,),) = [list(path.iterdir()) for path in (tmp_path / "kept/student").iterdir()]
        assert folder.name == digest
        assert len(list(folder.iterdir())) == 1


def test_the_teacher_sees_its_own_text(tmp_path, models, records):
    """The teacher's predictions are those for a system text that begins with it; a student's are not."""
    own = [record | {"teacher_prompt": "Think of risk."} for record in records]
    system = {"role": "system", "content": "Think of risk.\n\nYou are a manager."}
    joined = [record | {"messages": [system, *record["messages"][1:]]} for record in records]
    engine = TransformersEngine(ModelSource(models["teacher"], dtype="float32", device="cpu"), Sampling(9, 0.0), 4)

    def answer(folder, asked, **settings):
        found = predict(asked, engine, None, True, tmp_path / folder, **settings)
        return [(one["prediction"], one["nll"]) for one in found]

    plain = answer("plain", records)
    assert answer("student", own) == plain
    assert answer("teacher", own, is_teacher=True) == answer("joined", joined) != plain
