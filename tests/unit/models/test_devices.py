"""The device that a job computes on, and what is said where a GPU cannot be used."""

import pytest
import torch

from distill.common.errors import InputError
from distill.models import load
from distill.models.load import GPU_VARIABLES, find_cuda_problem, select_device

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(load, "GPU_FILE", tmp_path / "nvidia0")
    for name in GPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_gpu_is_used_if_there_is_one(monkeypatch, caplog):
    assert select_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [select_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    assert caplog.text == ""


def test_a_gpu_that_cannot_be_used_is_an_error(monkeypatch, machine):
    (machine / "nvidia0").touch()
    with pytest.raises(InputError, match="has a GPU that cannot be used.*set `device: cpu`"):
        select_device("auto")
    assert select_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", GPU_VARIABLES)
def test_a_gpu_that_a_job_was_given_but_does_not_find_is_a_warning(monkeypatch, name, caplog):
    monkeypatch.setenv(name, "0")
    assert select_device("auto").type == "cpu"
    assert f"{name} names a GPU, but there is none" in caplog.text


def test_a_requested_gpu_is_needed():
    with pytest.raises(InputError, match=r"device: expected a CUDA GPU, found none \(.*\); set `device: cpu`"):
        select_device("cuda")


def test_the_reason_is_that_of_cuda(monkeypatch):
    def refuse():
        raise RuntimeError(f"{TOO_OLD}\nby downloading")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert find_cuda_problem() == f"torch {torch.__version__} needs CUDA 13.0: {TOO_OLD}"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert find_cuda_problem() == f"torch {torch.__version__} is a build without CUDA"
