"""The benchmark of students with another tokenizer, on a tiny teacher."""

import json
from importlib.util import find_spec

import pytest
from benchmark_modules import import_benchmark
from tiny import save_model

cross_tokenizer = import_benchmark("cross_tokenizer")

OURS = ("seqkd", "forward_kl hidden", "forward_kl topk 64")


def test_trl_is_a_way_if_it_is_installed():
    assert cross_tokenizer.STUDENTS.keys() == {*OURS, *(["TRL GOLD"] if find_spec("trl") else [])}


def test_differences_are_those_of_the_same_seed():
    found = cross_tokenizer.summarize([3.0, 4.0], [3.5, 5.0])
    assert found == {
        "bits_per_byte": [3.0, 4.0],
        "mean": 3.5,
        "above_seqkd": -0.75,
        "above_seqkd_deviation": 0.3536,
    }


@pytest.mark.slow
def test_students_are_compared_on_the_bytes_of_the_answers(tmp_path, tokenizer, monkeypatch, capsys):
    teacher = save_model(tmp_path / "teacher", tokenizer, vocabulary=len(tokenizer))
    monkeypatch.setattr(cross_tokenizer, "STUDENTS", {name: cross_tokenizer.STUDENTS[name] for name in OURS[:2]})
    options = ["--model", teacher, "--work", tmp_path / "work", "--out", tmp_path / "found.json", "--seeds", 1]
    options += ["--prompts", 20, "--epochs", 1, "--max-new-tokens", 6, "--layers", 1, "--width", 64, "--tokens", 400]
    cross_tokenizer.main(list(map(str, options)))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps"] == 2
    students = found["students"]
    assert students.keys() == {"teacher", *OURS[:2]}
    (plain,), (distilled,) = (students[name]["bits_per_byte"] for name in OURS[:2])
    assert plain != distilled
    assert students[OURS[1]]["above_seqkd"] == pytest.approx(distilled - plain, abs=2e-4)
    assert "| forward_kl hidden |" in capsys.readouterr().out
