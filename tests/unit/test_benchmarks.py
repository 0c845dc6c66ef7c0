"""The benchmark of the step compares ways that do the same, and refuses others."""

import sys

import pytest
import torch
from running import ROOT

from distill.common.errors import InputError

# Not for longer than its import: a benchmark and a script may have one name.
known = list(sys.path)
sys.path.append(str(ROOT / "benchmarks"))
import kd_step  # noqa: E402
from kd_ways import SHAPES, count_operations, expected_losses  # noqa: E402

sys.path[:] = known

WAYS = ["plain", "online", "hidden", "topk"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Each way in this process, on a tiny shape."""
    folder = tmp_path_factory.mktemp("signals")
    shape = ["--shape", "tiny", "--prompt-tokens", "20", "--completion-tokens", "8", "--top-k", "16", "--steps", "1"]
    args = kd_step.parse_args([*shape, "--device", "cpu"])
    expected = expected_losses(args, torch.device("cpu"), folder)
    return {way: kd_step.measure(way, args, folder) for way in WAYS}, expected


def test_ways_have_the_losses_that_they_should(measured):
    ways, expected = measured
    kd_step.check_losses(ways, expected, "fp32")
    assert ways["plain"]["first_loss"] == pytest.approx(ways["online"]["first_loss"], rel=1e-5)
    assert ways["topk"]["first_loss"] < ways["online"]["first_loss"]


def test_a_way_that_does_something_else_is_refused(measured):
    ways, expected = measured
    with pytest.raises(InputError, match="online: expected a first loss of"):
        kd_step.check_losses(ways | {"online": {"first_loss": expected["online"] * 1.01}}, expected, "fp32")
    with pytest.raises(InputError, match="topk: expected a loss below the exact one"):
        kd_step.check_losses({"topk": {"first_loss": expected["online"] * 1.01}}, expected, "fp32")


def test_ratios_and_table_are_of_what_was_measured():
    ways = {
        "plain": {"seconds": 6.0, "peak_memory_mb": 4096, "completion_tokens_per_second": 10.0},
        "liger": {"failed": "no GPU"},
        "online": {"seconds": 2.0, "peak_memory_mb": 1024, "completion_tokens_per_second": 30.0},
    }
    assert kd_step.ratios(ways) == {"online": {"plain": {"speed": 3.0, "memory": 0.25}}}
    assert "| online | 2.00 | 30 | 1.0 | 3.0 × |" in kd_step.table({"ways": ways})
    assert "| liger | no GPU |" in kd_step.table({"ways": ways})


def test_operations_are_those_of_the_matrix_products():
    """A pair of models by hand: 2 multiplications and additions a weight and token, thrice with a backward pass."""
    found = count_operations("tiny", batch=2, prompt=6, completion=4)
    vocabulary = SHAPES["tiny"][2]
    teacher_layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 64 * 10  # projections, feed-forward, half of the mixing
    student_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 32 * 10
    student = 3 * (2 * 2 * 20 * student_layer + 8 * 2 * 32 * vocabulary)
    assert found["topk"] == student
    assert found["hidden"] == student + 8 * 2 * 64 * vocabulary
    assert found["online"] == found["hidden"] + 2 * 2 * 20 * teacher_layer
