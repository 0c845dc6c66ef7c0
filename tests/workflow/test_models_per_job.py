"""Several models of a category that answer in one job."""

import re

import pytest
from running import merge

EVALUATION = {"models_per_job": 2, "questions": ["What is rain?"], "system": "Answer briefly."}
MODELS = ("student_kd", "student_kd_base", "student_seqkd")


@pytest.fixture(scope="module")
def batched(finished, tmp_path_factory):
    """The finished run without predictions and what is kept of them, to be made by two models per job."""
    directory = finished.copy(tmp_path_factory.mktemp("batched") / "run")
    directory.configure(merge(directory.config, {"evaluation": EVALUATION}))
    for folder in ("output/evaluation", "artifacts/predicted"):
        (directory / folder).rename(directory / f"removed_{folder.replace('/', '_')}")
    return directory


def list_answering(output):
    """Return the models of each job that predicts for banks, and of each that only answers questions."""
    jobs = re.findall(r"rule (\w+):.*?output: (.*?)$", output, flags=re.MULTILINE | re.DOTALL)
    found = [(rule, re.findall(r"evaluation/(\S+?)/banks\.(\w+)\.jsonl", files)) for rule, files in jobs]
    return sorted((rule, files) for rule, files in found if re.match("predict|answer_q", rule) and files)


def test_students_answer_in_pairs_with_the_files_of_single_jobs(batched, finished):
    targets = [
        f"output/evaluation/{model}/banks.{kind}.jsonl" for model in MODELS for kind in ("predictions", "questions")
    ]
    output = batched.run(*targets, "output/evaluation/teacher/banks.predictions.jsonl")
    first, second = MODELS[:2], MODELS[2:]
    assert list_answering(output) == [
        ("predict_answers", [("teacher", "predictions")]),
        ("predict_models_1", [(model, kind) for kind in ("predictions", "questions") for model in first]),
        ("predict_models_2", [(model, kind) for kind in ("predictions", "questions") for model in second]),
    ]
    for model in MODELS:
        name = f"output/evaluation/{model}/banks.predictions.jsonl"
        assert (batched / name).read_bytes() == (finished / name).read_bytes()
        assert "What is rain?" in (batched / name.replace("predictions", "questions")).read_text()


def test_the_answers_of_the_other_models_are_kept(batched, finished):
    """Runs after the test above."""
    name = "output/evaluation/student_kd/banks.predictions.jsonl"
    (batched / name).unlink()
    log = batched / "logs/predict_models/1/banks.log"
    assert log.read_text().count("8 answers: 0 in the cache, 8 to generate") == 2
    batched.run(name)
    assert log.read_text().count("8 answers: 8 in the cache, 0 to generate") == 2
    assert (batched / name).read_bytes() == (finished / name).read_bytes()
