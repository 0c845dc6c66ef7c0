"""The benchmark of scoring runs the workflow's scripts on texts of the length that it names."""

import json

from benchmark_modules import import_benchmark
from running import ROOT

scoring = import_benchmark("scoring")


def test_texts_have_their_length_and_models_have_the_same_references():
    one, other = (list(scoring.make_predictions(model, 30)) for model in (0, 1))
    for name in ("uid", "reference", "label", "nll_tokens"):
        assert [record[name] for record in one] == [record[name] for record in other]
    assert all(record["prediction"] != record["reference"] for record in one + other)
    lengths = [len(record[name]) for record in one + other for name in ("reference", "prediction")]
    assert 300 < min(lengths) < 500
    assert 850 < max(lengths) < 1_100


def test_models_are_scored_and_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ALTERNATIVE", (1, 2))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scoring.main(["--records", "4", "--models", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert (row["records"], row["models"]) == (4, 2)
    assert row["cpu_seconds"] > row["cpu_seconds_of_comparing"] > 0
    assert found["rouge_score"]["extrapolated_cpu_seconds"].keys() == {"4"}
