"""Benchmark tasks in the workflow: which models run them, and what runs them again."""

import csv
from importlib.util import find_spec

import pytest
from benchmark_tasks import QUESTIONS, write_tasks
from running import merge, planned

from distill.plan.status import parse_dry_run

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed (requirements-tasks.txt)"
)


def configure(directory, **changes):
    """Evaluate on a task file in the directory."""
    write_tasks(directory / "tasks")
    settings = {"tasks": ["plus_one"], "tasks_path": "tasks"} | changes
    directory.configure(merge(directory.config, {"evaluation": settings}))


def list_runs(output):
    """Models and categories of the jobs that run tasks."""
    jobs, _ = parse_dry_run(output)
    return sorted((job.wildcards["model"], job.wildcards["category"]) for job in jobs if job.rule == "run_tasks")


@needs_harness
def test_models_with_the_same_weights_run_once_and_all_are_scored(copy):
    configure(copy)
    output = copy.run("--dry-run")
    jobs, _ = parse_dry_run(output)
    scored = {(job.wildcards["model"], job.wildcards["category"]) for job in jobs if job.rule == "score_tasks"}
    categories = [path.name for path in (copy / "output/student_kd").iterdir()]
    students = ["student_kd", "student_seqkd"]
    assert scored == {(m, c) for m in ["teacher", *students, *(f"{s}_base" for s in students)] for c in categories}
    runs = list_runs(output)
    assert [run for run in runs if run[0] in students] == sorted((s, c) for s in students for c in categories)
    assert [model for model, _ in runs if model.endswith("_base")] == ["student_kd_base"]
    assert not {"train_student", "predict_answers", "score_predictions"} & {rule for rule, _ in planned(output)}


@needs_harness
def test_scores_stand_in_the_tables_and_a_changed_task_runs_again(copy, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(copy / "hub"))
    copy.configure(copy.config | {"categories": ["banks"]})
    configure(copy)
    copy.run("output/report/metrics.csv", "output/report/comparisons.csv")
    with open(copy / "output/report/metrics.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file) if row["metric"] == "plus_one/acc"}
    assert rows.keys() >= {"teacher", "student_kd", "student_kd_base", "student_seqkd", "student_seqkd_base"}
    assert {row["n"] for row in rows.values()} == {str(len(QUESTIONS))}
    assert all(float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) for row in rows.values())
    with open(copy / "output/report/comparisons.csv", newline="") as file:
        pairs = {(row["model"], row["other"]): row for row in csv.DictReader(file) if row["metric"] == "plus_one/acc"}
    difference = float(rows["student_kd"]["value"]) - float(rows["student_kd_base"]["value"])
    assert float(pairs["student_kd", "student_kd_base"]["difference"]) == pytest.approx(difference, abs=1e-12)
    assert list_runs(copy.run("--dry-run")) == []
    task = copy / "tasks/choice.yaml"
    task.write_text(task.read_text().replace("Question:", "Q:"))
    again = copy.run("--dry-run")
    assert len(list_runs(again)) == 4  # the teacher, both students, and their common base
    assert not {"train_student", "predict_answers", "score_predictions"} & {rule for rule, _ in planned(again)}


def test_a_missing_folder_of_tasks_is_refused(copy):
    configure(copy, tasks_path="nowhere")
    output = copy.run("--dry-run", check=False)
    assert "evaluation.tasks_path: expected a folder of task files, found 'nowhere'" in output


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_the_missing_package_is_named_in_the_plan(copy):
    configure(copy)
    output = copy.run("--dry-run", check=False)
    assert "evaluation.tasks: expected the package lm_eval, which is not installed: run `make setup-tasks`" in output
