"""Trackers in the workflow: what jobs report, that turning them on reruns nothing, and a refusal in the plan."""

import pytest
from running import ROOT, merge, read_lines

from distill.common.trackers import TRACKERS, find_missing

STAND_INS = ROOT / "tests/helpers/stand_ins"
REPORTING = {"report_to": ["trackio"], "tracking_project": "holdings"}
RULES = ("generate_answers", "compute_signal", "train_student")


@pytest.fixture
def stand_in(monkeypatch):
    """A package trackio for Snakemake and its jobs, whether the real one is installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))


def test_the_jobs_of_a_run_report(fresh, tmp_path, stand_in):
    directory = fresh.copy(tmp_path / "run")
    student = merge(directory.config["students"]["student_kd"], {"signal": "topk", "top_k": 4})
    changes = REPORTING | {"categories": ["banks"]}
    directory.configure(merge(directory.config, changes) | {"students": {"student_kd": student}})
    directory.run("output/student_kd/banks/model.safetensors")
    calls = read_lines(directory / "artifacts/trackers/trackio/calls.jsonl")
    runs = {call["group"]: call for call in calls if call["call"] == "init"}
    assert sorted(runs) == sorted(RULES)
    assert len([call for call in calls if call["call"] == "init"]) == 3
    assert {call["project"] for call in runs.values()} == {"holdings"}
    assert {call["name"] for call in calls if call["call"] == "finish"} == {call["name"] for call in runs.values()}
    signal = next((directory / "artifacts/distill_data/teacher_signal/banks").iterdir()).name
    names = ("teacher_outputs_banks", f"teacher_signal/banks/{signal}", "student_kd/banks")
    for rule, name in zip(RULES, names, strict=True):
        assert runs[rule]["name"].rpartition("-")[0] == name
    lines = {rule: [c for c in calls if c["call"] == "log" and c["name"] == runs[rule]["name"]] for rule in RULES}
    for rule in RULES[:2]:
        assert lines[rule][-1]["metrics"]["progress/share"] == 1
        assert lines[rule][-1]["metrics"]["progress/tokens_per_second"] > 0
    assert any("train/loss" in line["metrics"] for line in lines["train_student"])
    card = (directory / "output/student_kd/banks/README.md").read_text()
    assert lines["train_student"][-1]["metrics"] == {"card": card}
    assert list((directory / "artifacts/trackers/unfinished").iterdir()) == []


def test_turning_trackers_on_reruns_nothing(copy, stand_in):
    copy.configure(merge(copy.config, REPORTING))
    assert copy.planned() == []


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(copy):
    absent = next((name for name in TRACKERS if find_missing([name])), None)
    if absent is None:
        pytest.skip("all trackers are installed")
    copy.configure(merge(copy.config, {"report_to": [absent]}))
    output = copy.run("--dry-run", check=False)
    assert f"pip install {TRACKERS[absent].package} (requirements-extra.txt has tested versions)" in output
