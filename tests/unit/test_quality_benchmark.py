"""The benchmark of the methods, on a tiny model."""

import json
import statistics

import pytest
from benchmark_modules import import_benchmark
from tiny import save_model

quality = import_benchmark("quality")


@pytest.fixture
def arguments(tmp_path, tokenizer):
    teacher = save_model(tmp_path / "teacher", tokenizer, vocabulary=len(tokenizer), layers=3)
    options = ["--model", str(teacher), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "quality.json")]
    options += ["--prompts", "20", "--layers", "2", "--max-new-tokens", "6", "--epochs", "1", "--batch-size", "8"]
    return [*options, "--only", "seqkd", "tvd", "--seeds", "1", "2", "--best", "1", "--precision", "fp32"]


def test_every_method_is_measured():
    ways = quality.list_ways()
    assert {way.method for way in ways} == set(quality.METHODS)
    assert len({way.name for way in ways}) == len(ways)
    assert quality.BASELINE in ways


@pytest.mark.slow
def test_students_are_compared_over_seeds_and_a_second_run_continues(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "BASELINE", quality.Way("tvd"))
    quality.main(arguments)
    result = json.loads((tmp_path / "quality.json").read_text())
    ways = result["ways"]
    names = {"seqkd", "tvd τ=1", "tvd τ=2"}
    (longer,) = ways.keys() - names
    assert longer.removesuffix(" ×3") == min(names, key=lambda name: ways[name]["nats"]["mean"])
    seeds = ways["tvd τ=2"]["seeds"]
    values = [seeds["1"]["nats"], seeds["2"]["nats"]]
    assert values[0] != values[1]
    assert ways["tvd τ=2"]["nats"] == {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
    assert "nats_above_forward_kl" not in ways["tvd τ=1"]
    assert result["others"].keys() == {"teacher", "before"}
    assert "| `tvd τ=2` |" in capsys.readouterr().out

    def fail(options):
        raise AssertionError(f"trains again: {options}")

    monkeypatch.setattr(quality.train_student, "main", fail)
    (tmp_path / "quality.json").unlink()
    quality.main(arguments)
    assert json.loads((tmp_path / "quality.json").read_text()) == result
