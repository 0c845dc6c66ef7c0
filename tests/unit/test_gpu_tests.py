"""`make test-gpu` on a machine without a GPU: every test is skipped, and the summary says why."""

import subprocess
import sys

import pytest
from running import ROOT, environment


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
def test_without_a_gpu_every_test_is_skipped(processes):
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--numprocesses", processes, "-p", "no:cacheprovider"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "STILLHOUSE_GPU_TESTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment() | hidden, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every test was skipped for want of a GPU: torch " in done.stdout
    summary = done.stdout.splitlines()[-1]
    assert "skipped" in summary
    assert not any(word in summary for word in ("passed", "failed", "error"))
