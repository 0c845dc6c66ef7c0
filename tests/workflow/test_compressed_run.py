"""Variants of LLM Compressor in the workflow: what is planned, what they are calibrated on, and their scores."""

import csv
import sys

import pytest
from quantizer import find_python
from running import merge, planned

from distill.export.compress import OWN_ENVIRONMENT
from distill.plan.status import parse_dry_run

PYTHON = find_python()


def configure(directory, *variants, **changes):
    """Export the student student_seqkd of one category in these variants."""
    export = {"variants": list(variants), "students": ["student_seqkd"]} | changes
    directory.configure(merge(directory.config, {"categories": ["banks"], "export": export}))


def test_a_calibrated_variant_reads_the_train_split_and_is_scored(copy):
    configure(copy, "full", "gptq", quantizer=sys.executable)
    output = copy.run("--dry-run")
    jobs, _ = parse_dry_run(output)
    exports = {job.wildcards["variant"]: job.rule for job in jobs if job.rule.startswith("export_")}
    assert exports == {"full": "export_model", "gptq": "export_compressed"}
    assert "--data artifacts/distill_data/processed/banks/train.jsonl --calibration-records 256" in output
    assert [job.wildcards["model"] for job in jobs if job.rule == "predict_answers"] == ["student_seqkd_gptq"]
    assert "train_student" not in {rule for rule, _ in planned(output)}


@pytest.mark.skipif(OWN_ENVIRONMENT.exists(), reason="LLM Compressor is installed")
def test_missing_software_is_named_in_the_plan(copy):
    configure(copy, "fp8")
    output = copy.run("--dry-run", check=False)
    assert "export.variants: expected LLM Compressor in .venv-quantize, found none; run `make setup-quantize`" in output


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="LLM Compressor is not installed (make setup-quantize)")
def test_a_compressed_student_is_scored_beside_the_student(copy):
    configure(copy, "fp8", quantizer=PYTHON)
    copy.run()
    with open(copy / "output/report/metrics.csv", newline="") as file:
        scores = {row["model"]: float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "ppl"}
    assert scores["student_seqkd_fp8"] == pytest.approx(scores["student_seqkd"], rel=0.1)
    assert scores["student_seqkd_fp8"] != scores["student_seqkd"]
    assert (copy / "output/export/student_seqkd/banks/fp8/README.md").is_file()
    assert "Nothing to be done" in copy.run("--dry-run")
