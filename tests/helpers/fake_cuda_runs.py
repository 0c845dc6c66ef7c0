"""Run code on fake CUDA tensors, in a process of its own: the guard must be loaded before torch is imported."""

import json
import subprocess
import sys
from textwrap import dedent, indent
from typing import Any

from running import SCRIPTS, environment

PROGRAM = """
import json, sys
from distill.memory_plan.cuda_guard import load_cuda_guard
load_cuda_guard()
import torch
from distill.memory_plan.fake_cuda import fake_cuda
from distill.memory_plan.live_memory import LiveMemory
with fake_cuda():
{code}
print(json.dumps(found))
"""


def run_on_fake_cuda(code: str) -> Any:
    """Run code with `torch` and `LiveMemory` at hand; return the value, made of JSON types, that it gives `found`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=indent(dedent(code), "    "))],
        env=environment() | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
