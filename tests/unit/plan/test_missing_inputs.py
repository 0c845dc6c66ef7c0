"""The status of an experiment before its raw records are there."""

import pytest

from distill.plan.missing_inputs import find_blocking_files, render_missing
from distill.plan.schema import check_config

CONFIG = {
    "categories": ["banks", "other"],
    "source": {"format": "alpaca", "path": "data/{category}.json", "system": "Answer."},
    "teacher": {"model": "hf:a/teacher"},
    "answer": None,
    "students": {"student": {"model": "models/student", "method": "seqkd"}},
    "evaluation": {"metrics": ["bleu"]},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return check_config(CONFIG)


def test_missing_files_block_only_if_no_category_has_its_own_or_all_must(config, tmp_path):
    assert find_blocking_files(config) == {"banks": ["data/banks.json"], "other": ["data/other.json"]}
    (tmp_path / "data/banks.json").touch()
    assert find_blocking_files(config) == {}
    must = config | {"source": config["source"] | {"missing": "error"}}
    assert find_blocking_files(must) == {"other": ["data/other.json"]}
    (tmp_path / "data/other.json").touch()
    assert find_blocking_files(must) == {}


def test_what_is_missing_is_shown_as_a_table(config, tmp_path):
    (tmp_path / "data/banks.json").touch()
    lines = render_missing(config, {"other": ["data/other.json"]}).splitlines()
    assert lines == [
        "Teacher: models/hf/a/teacher, engine transformers",
        "category  records        missing files",
        "banks     there          –",
        "other     missing input  data/other.json",
        f"No job can be planned: source.missing is error. Paths are relative to {tmp_path}; see source.path in the "
        "configuration.",
        "",
        "model                state",
        "models/hf/a/teacher  missing; the run downloads it",
        "models/student       no folder here; as a hub id, from the hub or its local cache",
    ]


def test_models_that_are_there_are_not_missing(config, tmp_path):
    for name in ("hf/a/teacher", "student"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models/hf/a/teacher/download.json").touch()
    lines = render_missing(config, find_blocking_files(config)).splitlines()
    assert [line.split() for line in lines[-2:]] == [["models/hf/a/teacher", "there"], ["models/student", "there"]]
    assert "no category has its raw files" in lines[4]
