"""The example with a real model: its plan for the questions in this repository, without that model."""

import shutil

from running import ROOT, planned, snakemake

EXAMPLE = ROOT / "config/smollm2.yaml"


def test_the_smollm2_example_plans_its_whole_run(fresh, tmp_path):
    shutil.copytree(ROOT / "examples/questions", tmp_path / "examples/questions")
    shutil.copytree(fresh / "models/teacher", tmp_path / "models/smollm2")
    output = snakemake("--configfile", EXAMPLE, "--directory", tmp_path, "--dry-run")
    jobs = [rule for rule, _ in planned(output)]
    expected = {
        "mix_records": 1, "generate_answers": 1, "copy_layers": 1, "compute_signal": 1, "train_student": 2,
        "predict_answers": 4, "judge_answers": 1, "tabulate_scores": 1,
    }  # fmt: skip
    assert {rule: jobs.count(rule) for rule in expected} == expected
    assert "of english" in output
    assert "skipped" not in output
