"""Pins: one version of each package, in requirements.txt and the conda environments alike."""

import re
from pathlib import Path

import pytest
import vllm_stand_in
import yaml

from distill.common.trackers import TRACKERS
from distill.evaluation.options import HARNESS

ROOT = Path(__file__).resolve().parents[2]


def read_pins(path):
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), flags=re.MULTILINE))


PINS = read_pins(ROOT / "requirements.txt")


def environment_pins(path):
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    (pip,) = [part["pip"] for part in dependencies if isinstance(part, dict)]
    return dict(pin.split("==") for pin in pip)


def test_everything_is_pinned():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(PINS)
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("name", ["data", "torch"])
def test_environments_carry_the_same_versions(name):
    pins = environment_pins(ROOT / f"workflow/envs/{name}.yaml")
    assert pins
    assert pins == {package: PINS[package] for package in pins}


def test_the_environment_of_benchmark_tasks_adds_one_package():
    pins = read_pins(ROOT / "requirements-tasks.txt")
    assert pins.keys() == {HARNESS}
    assert (
        environment_pins(ROOT / "workflow/envs/tasks.yaml")
        == environment_pins(ROOT / "workflow/envs/torch.yaml") | pins
    )


def test_what_is_off_by_default_is_pinned_beside_the_base_set():
    pins = read_pins(ROOT / "requirements-extra.txt")
    assert set(pins) == {tracker.package for tracker in TRACKERS.values()} | {"torchao"}
    assert not set(pins) & set(PINS)


def test_vllm_is_alone_in_its_environment_and_of_the_version_that_is_tested():
    """vLLM pins its own torch and transformers, so that it shares no environment with the jobs."""
    pins = read_pins(ROOT / "requirements-vllm.txt")
    assert pins == environment_pins(ROOT / "workflow/envs/vllm.yaml")
    assert list(pins) == ["vllm"]
    assert "vllm" not in PINS
    assert pins["vllm"] == vllm_stand_in.VERSION


def test_llm_compressor_is_alone_in_its_environment_with_the_torch_of_the_workflow():
    pins = read_pins(ROOT / "requirements-quantize.txt")
    assert pins == environment_pins(ROOT / "workflow/envs/quantize.yaml")
    assert set(pins) == {"llmcompressor", "torch"}
    assert pins["torch"] == PINS["torch"]


def test_data_steps_need_no_torch():
    assert "torch" not in environment_pins(ROOT / "workflow/envs/data.yaml")


def test_every_environment_is_used_by_a_rule():
    used = {
        match
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for match in re.findall(r"envs/(\w+)\.yaml", path.read_text())
    }
    apart = {"vllm", "quantize"}  # of programs that jobs of the environment torch start
    assert used | apart == {path.stem for path in (ROOT / "workflow/envs").glob("*.yaml")}
