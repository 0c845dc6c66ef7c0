"""The benchmark of near-duplicates runs the workflow's script on prompts of the kinds that it names."""

import json
from statistics import mean

from benchmark_modules import import_benchmark
from running import ROOT

near_duplicates = import_benchmark("near_duplicates")


def test_prompts_have_their_length_and_stay_the_same():
    for kind, length in (("chinese", 35), ("letters", 230), ("template", 235)):
        texts = list(near_duplicates.KINDS[kind](400))
        assert texts == list(near_duplicates.KINDS[kind](400))
        assert 0.8 * length < mean(map(len, texts)) < 1.25 * length


def test_every_kind_is_searched(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(near_duplicates, "is_installed", lambda name: False)
    near_duplicates.main(["--prompts", "60", "--out", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())["rows"]
    assert [(row["kind"], row["prompts"]) for row in rows] == [("chinese", 60), ("letters", 60), ("template", 12)]
    assert all(row["peak_mib"] > 0 and row["incomplete"] == 0 for row in rows)
    assert rows[0]["near_duplicates"] > 0
