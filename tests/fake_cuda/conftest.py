"""Tests on fake CUDA tensors, in a process of their own: autograd knows a GPU only if it is there before torch."""

import sys

import pytest

from distill.common.errors import InputError
from distill.memory_plan.cuda_guard import load_cuda_guard

MISSING = pytest.StashKey[str]()


def pytest_configure(config):
    """Load the guard; without a compiler for it, all tests of this folder are skipped."""
    if "torch" in sys.modules:
        raise pytest.UsageError("tests/fake_cuda needs a process of its own: python -m pytest tests/fake_cuda")
    try:
        load_cuda_guard()
    except InputError as error:
        config.stash[MISSING] = str(error)


def pytest_collection_modifyitems(config, items):
    if reason := config.stash.get(MISSING, ""):
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def gpu():
    """The mode of the fake tensors."""
    from fake_gpu import fake_gpu

    with fake_gpu() as mode:
        yield mode
