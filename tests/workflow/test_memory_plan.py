"""`make plan` on the configurations of the project."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

SCRIPT = ROOT / "workflow/scripts/plan_memory.py"


def plan(directory, *arguments, config="config", check=True):
    configfile = config if isinstance(config, Path) else ROOT / f"config/{config}.yaml"
    command = [sys.executable, str(SCRIPT), "--configfile", str(configfile)]
    command += ["--directory", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 or not check, done.stderr
    return done


def read_stages(directory):
    stages = json.loads((directory / "artifacts/memory_plan.json").read_text())["stages"]
    assert stages
    return stages


def test_the_default_configuration_fits_an_a100_with_a_tenth_to_spare(tmp_path):
    done = plan(tmp_path, "--device", "a100-40")
    stages = read_stages(tmp_path)
    assert {stage["fits"] for stage in stages} == {"yes"}, done.stdout
    training = next(stage for stage in stages if stage["rule"] == "train_student")
    assert 20 * 2**30 < training["live"] < training["reserved"] < 0.9 * 39.4 * 2**30
    again = plan(tmp_path, "--device", "a100-40")
    assert "planning" in done.stderr
    assert "planning" not in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_question_answering_fits_128_gb(tmp_path):
    done = plan(tmp_path, "--device", "gb10-128", config="qa")
    assert {stage["fits"] for stage in read_stages(tmp_path)} == {"yes"}, done.stdout


@pytest.mark.slow
def test_what_does_not_fit_is_named_with_what_helps(tmp_path):
    lengths = ["--prompt-tokens", "64", "--answer-tokens", "16"]
    done = plan(tmp_path, "--device", "0.61GiB", *lengths, config="demo", check=False)
    assert done.returncode == 1
    assert "training of student_online does not fit with a tenth to spare. It would take, with:" in done.stdout
    assert "batch_size: 1, with as many more gradient_accumulation_steps:" in done.stdout


def test_jobs_request_the_memory_of_the_plan(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    before = directory.run("-n", "--printshellcmds")
    assert "mem_mb=32000" in before
    plan(directory.path, config=directory.configfile)
    requests = {stage["rule"]: stage["request_mb"] for stage in read_stages(directory.path)}
    after = directory.run("-n")
    assert "mem_mb=32000" not in after
    assert "mem_mb=64000" not in after
    assert f"mem_mb={requests['train_student']}" in after


def test_a_broken_plan_is_named_before_anything_runs(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    (directory.path / "artifacts/memory_plan.json").write_text("{}")
    output = directory.run("-n", check=False)
    assert "Error: artifacts/memory_plan.json: expected a memory plan" in output
    assert "Traceback" not in output


def test_an_unknown_device_is_named(tmp_path):
    done = plan(tmp_path, "--device", "a100", check=False)
    assert done.returncode == 1
    assert "--device: expected a100-40 | a100-80 | h100-80 | gb10-128 | cpu | a size such as 24GB" in done.stderr
