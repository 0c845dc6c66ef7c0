"""Answers of evaluated models are stored: a job that Slurm requeues, or a forced one, generates no answer again."""

import logging

import pytest
from training_runs import write_splits

import answer_questions
import predict_answers
from distill.common.files import read_jsonl

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
