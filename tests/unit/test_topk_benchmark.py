"""The benchmark of the signal `topk` on a tiny teacher: what it compares, stores and prints."""

import json

import pytest
import torch
from benchmark_modules import import_benchmark

topk_signal = import_benchmark("topk_signal")


def make_examples(*_):
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(5, 300, (6, 30), generator=generator).tolist()
    return [{"prompt": row[:10], "completion": row[10:]} for row in draw]


def test_buckets_have_a_bias_and_packed_files_the_numbers_of_plain_ones(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(topk_signal, "make_examples", make_examples)
    monkeypatch.setattr(topk_signal, "SETTINGS", ((8, 0), (300, 0), (8, 32768)))
    out = tmp_path / "result.json"
    sizes = ["--step-tokens", "50", "--stored-tokens", "200"]
    topk_signal.main(["--model", models["teacher"], *sizes, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["tokens"] == 120
    for temperature in (1.0, 2.0):
        bucket, most, sampled = [one for one in result["accuracy"] if one["temperature"] == temperature]
        assert bucket["nats"] < most["nats"] <= most["exact_nats"] + 1e-3
        assert sampled["nats"] == pytest.approx(sampled["exact_nats"], abs=2e-3)
        for name in ("step_gradient_error_percent", "whole_gradient_error_percent"):
            assert sampled[name] < bucket[name] / 2
            assert most[name] < bucket[name]
    stored = result["storage"]
    assert stored["tokens"] == 240
    assert stored["packed"]["bytes_per_token"] < stored["plain"]["bytes_per_token"]
    assert "| 1 | 8 | 32768 |" in capsys.readouterr().out
