"""Tests on a GPU against the CPU. With STILLHOUSE_GPU_TESTS=cpu the CPU takes the GPU's place."""

import os

import pytest
import torch
from library_fixtures import models, options, prompts, records, tokenizer  # noqa: F401

from distill.models.load import find_cuda_problem

IS_REHEARSAL = os.environ.get("STILLHOUSE_GPU_TESTS") == "cpu"
# Models this small gain nothing from a second thread, and wait for it where the machine is busy.
torch.set_num_threads(1)
MISSING = pytest.StashKey[str]()


def pytest_configure(config):
    if not (IS_REHEARSAL or torch.cuda.is_available()):
        config.stash[MISSING] = find_cuda_problem()


def pytest_collection_modifyitems(config, items):
    """Mark all tests, and skip them without a GPU."""
    for item in items:
        item.add_marker(pytest.mark.gpu)
        if reason := config.stash.get(MISSING, ""):
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))


def pytest_terminal_summary(terminalreporter, config):
    if reason := config.stash.get(MISSING, ""):
        terminalreporter.section("no GPU", sep="=", yellow=True)
        terminalreporter.line(f"Every test was skipped for want of a GPU: {reason}.")
        terminalreporter.line("With STILLHOUSE_GPU_TESTS=cpu the CPU takes its place.")
    elif IS_REHEARSAL:
        terminalreporter.section("rehearsal", sep="=", yellow=True)
        terminalreporter.line("The CPU took the GPU's place: nothing has run on a GPU.")
    else:
        terminalreporter.section("GPU", sep="=")
        terminalreporter.line(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")


@pytest.fixture(scope="session")
def device():
    """`cuda`, or `cpu` in a rehearsal."""
    return "cpu" if IS_REHEARSAL else "cuda"


@pytest.fixture
def real_gpu():
    """Skip a test of which only a GPU can tell anything."""
    if IS_REHEARSAL:
        pytest.skip("only a GPU can tell")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def free_memory():
    """Give memory back after each test, and take a limit away that it has set."""
    yield
    if torch.cuda.is_available() and not IS_REHEARSAL:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
