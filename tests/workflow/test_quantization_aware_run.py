"""A student, its plain rounding and one that is trained for it, in one run from the cached signal."""

import csv
from importlib.util import find_spec

import pytest
from running import merge
from safetensors.torch import load_file

from distill.plan.status import parse_dry_run

PACKAGES = ("torchao", "compressed_tensors")
ABSENT = [package for package in PACKAGES if find_spec(package) is None]
VARIANT = "nvfp4a16"


def add_rounded(directory):
    """Add a student that starts from student_kd and is trained for NVFP4, and export all of them."""
    student = directory.config["students"]["student_kd"]
    train = student["train"] | {"quantization_aware": "nvfp4", "epochs": 2}
    rounded = student | {"model": "output/student_kd/{category}", "signal": "hidden", "train": train}
    changes = {"students": {"student_nvfp4": rounded}, "export": {"variants": ["full", VARIANT]}}
    directory.configure(merge(directory.config, changes) | {"categories": ["banks"]})


@pytest.mark.skipif(not ABSENT, reason="torchao and compressed-tensors are installed")
def test_a_missing_package_stops_the_run_before_it_starts(copy):
    add_rounded(copy)
    output = copy.run("--dry-run", check=False)
    assert "students.student_nvfp4.train.quantization_aware needs torchao, which is not installed: run `pip" in output


@pytest.mark.skipif(bool(ABSENT), reason=f"{', '.join(ABSENT)} not installed (requirements-extra.txt)")
def test_both_are_scored_beside_the_student(copy):
    add_rounded(copy)
    jobs = parse_dry_run(copy.run("--dry-run"))[0]
    trained = {(job.wildcards["student"], job.wildcards["category"]) for job in jobs if job.rule == "train_student"}
    assert trained == {("student_nvfp4", "banks")}
    assert "generate_answers" not in {job.rule for job in jobs}
    copy.run()
    with open(copy / "output/report/metrics.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file) if row["metric"] == "ppl"}
    exact, plain = rows["student_kd"], rows[f"student_kd_{VARIANT}"]
    trained, packed, base = (rows[f"student_nvfp4{suffix}"] for suffix in ("", f"_{VARIANT}", "_base"))
    assert all(row["ci_low"] and row["ci_high"] for row in (exact, plain, trained))
    assert trained["value"] == packed["value"], "what is served is what was scored"
    assert base["value"] == exact["value"]
    assert len({row["value"] for row in (exact, plain, trained)}) == 3
    for student in ("student_kd", "student_nvfp4"):
        packed = load_file(copy / f"output/export/{student}/banks/{VARIANT}/model.safetensors")
        assert sum(name.endswith(".weight_packed") for name in packed) == 14
    card = (copy / f"output/export/student_nvfp4/banks/{VARIANT}/README.md").read_text()
    assert "| `quantization_aware` | `nvfp4` |" in card
    assert "CompressedTensorsConfig(dequantize=True)" in card
    assert copy.planned() == []
