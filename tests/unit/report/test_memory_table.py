"""The table of used and planned memory."""

import csv
import json

import pytest

import tabulate_memory
from distill.common.errors import InputError


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def files(tmp_path):
    lines = [
        {"step": 1, "memory_mb": 900},
        {"step": 2, "memory_mb": 1200, "reserved_mb": 1300},
        {"step": 2, "val_loss": 1.0},
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    return {
        "answers": write(tmp_path / "raw/teacher_outputs_banks.stats.json", {"peak_memory_mb": 700}),
        "signals": write(tmp_path / "teacher_signal/banks/hidden/stats.json", {"peak_memory_mb": 0}),
        "training": write(tmp_path / "output/student_kd/banks/training_log.jsonl", log),
    }


def make_stage(rule, name, **wildcards):
    return {"rule": rule, "name": name, "wildcards": wildcards, "live": 5 * 2**20, "reserved": 7 * 2**20, "fits": "yes"}


def run(tmp_path, files, *others):
    arguments = [part for name, path in files.items() for part in (f"--{name}", path)]
    tabulate_memory.main([*arguments, *others, "--out", str(tmp_path / "memory.csv")])
    return read(tmp_path / "memory.csv")


def test_used_memory_without_a_plan(tmp_path, files):
    rows = run(tmp_path, files)
    assert [(row["stage"], row["category"], row["used_mib"], row["planned_mib"]) for row in rows] == [
        ("generate_answers", "banks", "700", ""),
        ("compute_signal hidden", "banks", "", ""),
        ("train_student student_kd", "banks", "1200", ""),
    ]


def test_used_memory_beside_the_plan(tmp_path, files):
    stages = [
        make_stage("generate_answers", "teacher's answers"),
        make_stage("train_student", "training of student_kd", student="student_kd"),
        make_stage("predict_answers", "evaluation of teacher", model="teacher"),
    ]
    plan = write(tmp_path / "plan.json", {"device": "a100-40", "stages": stages})
    rows = run(tmp_path, files, "--plan", plan)
    assert rows[2] == {
        "stage": "training of student_kd",
        "category": "banks",
        "used_mib": "1200",
        "used_reserved_mib": "1300",
        "planned_mib": "5",
        "planned_reserved_mib": "7",
        "device": "a100-40",
        "fits": "yes",
    }
    assert [row["stage"] for row in rows] == [
        "teacher's answers",
        "compute_signal hidden",
        "training of student_kd",
        "evaluation of teacher",
    ]


def test_a_job_of_a_category_with_its_own_teacher_has_its_own_stage(tmp_path, files):
    stages = [
        make_stage("generate_answers", "teacher's answers"),
        make_stage("generate_answers", "teacher's answers (banks)", category="banks"),
        make_stage("generate_answers", "teacher's answers (funds)", category="funds"),
    ]
    plan = write(tmp_path / "plan.json", {"device": "a100-40", "stages": stages})
    answers = run(tmp_path, {"answers": files["answers"]}, "--plan", plan)[0]
    assert (answers["stage"], answers["used_mib"]) == ("teacher's answers (banks)", "700")


def test_another_file_is_no_plan(tmp_path, files):
    plan = write(tmp_path / "plan.json", "{}")
    with pytest.raises(InputError, match=r"plan.json: expected a memory plan"):
        run(tmp_path, files, "--plan", plan)
