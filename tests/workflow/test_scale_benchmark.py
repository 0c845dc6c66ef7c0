"""The benchmark of a workflow's size runs on 500 questions."""

import json

import pytest
from benchmark_modules import import_benchmark

STEPS = {
    "first dry run",
    "mix_records",
    "make_prompts",
    "generate_answers",
    "gather_answers",
    "split_answers",
    "compute_signal",
    "train_student",
    "predict_answers",
    "judge_answers",
    "score_predictions",
    "compare_models",
    "tabulate_scores",
    "render_answers",
    "all from the answers on",
    "run with nothing to do",
    "make status",
    "make disk",
}


@pytest.mark.slow
def test_a_run_of_500_questions_is_measured_and_only_changed_ones_are_asked_again(tmp_path, monkeypatch):
    """The benchmark itself fails if other questions are asked, or other signals computed, than those that changed."""
    scale = import_benchmark("scale")
    # One student is enough here, without the fixed questions, which do not grow with the records.
    students = {"student_topk": scale.CONFIG["students"]["student_topk"]}
    evaluation = scale.CONFIG["evaluation"] | {"questions": []}
    monkeypatch.setattr(scale, "CONFIG", scale.CONFIG | {"students": students, "evaluation": evaluation})
    scale.main(
        ["--records", "500", "--epochs", "0.2", "--no-growth", "--work", str(tmp_path / "runs"), "--out", str(tmp_path)]
    )
    (path,) = tmp_path.glob("scale_*.json")
    (found,) = json.loads(path.read_text())["results"]
    rows = {row["step"]: row for row in found["steps"]}
    assert rows.keys() >= STEPS
    assert rows["generate_answers"]["jobs"] == 2
    assert rows["compute_signal"]["bytes"] > 500 * 0.5 * 200 * 100  # at least half of the answers have a signal
    assert all(row["cpu_seconds"] > 0 and row["peak_mib"] > 0 for row in rows.values() if row["seconds"] > 0.5)
    (whole,) = (row for row in found["changes"] if row["step"] == "whole run")
    assert whole["asked"] == 105
    assert 0 < whole["computed"] < 105
