"""Answers of evaluated models are stored: a job that Slurm requeues, or a forced one, generates no answer again."""

import logging
import shutil

import pytest
from reported_progress import Reported
from training_runs import Killed, write_splits

import answer_questions
import predict_answers
from distill.common.files import read_jsonl
from distill.evaluation import likelihood
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
        argv = [*asked[script], "--category", "banks", "--model", models["student"], "--out", out]
        script.main([*map(str, argv), *FAST, "--journal", str(tmp_path / "kept"), *options])
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
        kept = {path.name for path in folder.iterdir()} - {"likelihoods"}
        assert len(kept) == 1


class Measured:
    """Notes the records whose references are measured, and ends the run before one of them, as a kill would."""

    def __init__(self, monkeypatch):
        self.uids, self.last, self.measure = [], None, likelihood.answer_likelihoods
        monkeypatch.setattr(likelihood, "answer_likelihoods", self)
        monkeypatch.setattr(likelihood, "BATCHES_PER_PART", 1)

    def __call__(self, engine, tests, *settings, **names):
        if len(self.uids) == self.last:
            raise Killed
        self.uids.extend(test["uid"] for test in tests)
        return self.measure(engine, tests, *settings, **names)


def test_a_killed_run_measures_the_other_references_only(run, monkeypatch, records, tmp_path):
    expected, _ = run(predict_answers)
    journal = ["--journal", str(tmp_path / "another")]
    measured = Measured(monkeypatch)
    measured.last = 6
    with pytest.raises(Killed):
        run(predict_answers, *journal, "--batch-size", "2")
    measured.last = None
    found, (kept, asked) = run(predict_answers, *journal, "--batch-size", "2")
    assert (kept, asked) == (len(records), 0)
    assert len(measured.uids) == len(set(measured.uids)) == len(records) > 6
    # Sums do not depend on the batch, except for rounding.
    for one, other in zip(found, expected, strict=True):
        assert one == other | {"nll": pytest.approx(other["nll"], rel=1e-5)}
    assert run(predict_answers, *journal)[0] == found
    assert len(measured.uids) == len(records)


def test_a_changed_test_set_measures_its_new_records_only(run, monkeypatch, records, tmp_path):

    def write_again(asked):
        shutil.rmtree(tmp_path / "data")
        write_splits(tmp_path / "data", asked, asked[:2])

    before, _ = run(predict_answers)
    measured = Measured(monkeypatch)
    for text in ("another answer", "me again"):
        system, user, _ = records[3]["messages"]
        changed = [system, user, {"role": "assistant", "content": text}]
        write_again([*records[:3], records[3] | {"messages": changed}, *records[4:]])
        after, _ = run(predict_answers)
        assert measured.uids == [records[3]["uid"]]
        measured.uids.clear()
        assert [one for one in after if one in before] == [*before[:3], *before[4:]]
        assert after[3]["nll"] != before[3]["nll"]
    write_again(records)
    assert run(predict_answers)[0] == before  # the first reference is still in the journal
    run(predict_answers, "--seed", "5")  # as another model would
    assert len(measured.uids) == len(records)
    (folder,) = (tmp_path / "kept/student/banks.predict_answers").iterdir()
    assert len(list((folder / "likelihoods").iterdir())) == 1


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


def test_answers_and_likelihoods_are_reported_to_the_last_one(run, monkeypatch):
    reported = Reported(monkeypatch)
    found, _ = run(predict_answers)
    ends = reported.get_ends()
    assert len(ends) == 2
    for first, last in ends.values():
        assert (first["done"], first["total"]) == (0, len(found))
        assert (last["done"], last["total"], last["unit"]) == (len(found), len(found), "records")
        assert last["tokens_per_second"] > 0
        assert last["memory_mb"] > 0
