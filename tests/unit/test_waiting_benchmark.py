"""The benchmark of waiting threads runs jobs alone and beside each other."""

import json

import pytest
from benchmark_modules import import_benchmark


@pytest.mark.slow
def test_jobs_are_measured_alone_and_in_pairs(tmp_path, monkeypatch):
    waiting = import_benchmark("waiting")
    monkeypatch.setattr(waiting, "WAYS", {"workflow": waiting.WAYS["workflow"]})
    waiting.main(["--steps", "2", "--runs", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    (row,) = json.loads(path.read_text())["rows"]
    assert row["environment"] == {"GOMP_SPINCOUNT": "1000"}
    assert row["alone_seconds"] > 0
    assert row["two_seconds"] > 0
