"""When the log recommends vLLM."""

import logging

import pytest
import torch

import generate_answers
from distill.generation import vllm_server
from distill.generation.recommendation import recommend_vllm


@pytest.fixture
def lines(monkeypatch, tmp_path, caplog):
    """What is logged for options of generate_answers.py, with and without a GPU and vLLM."""

    def run(*options, has_gpu=True, has_vllm=True):
        program = tmp_path / "vllm"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path if has_vllm else tmp_path / "nowhere"))
        monkeypatch.setattr(vllm_server, "OWN_ENVIRONMENT", tmp_path / "nowhere")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        files = ["--prompts", "p", "--out", "o", "--stats", "s", "--model", "m"]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            recommend_vllm(generate_answers.parse_args([*files, *options]))
        return [record.message for record in caplog.records]

    return run


def test_vllm_is_recommended_where_it_is_installed_and_a_gpu_answers_with_transformers(lines, tmp_path):
    (line,) = lines()
    assert line.startswith(f"vLLM is installed ({tmp_path}/vllm)")
    assert "teacher.engine: vllm" in line


def test_nothing_is_recommended_that_cannot_be_used(lines):
    assert lines(has_gpu=False) == []
    assert lines(has_vllm=False) == []
    assert lines("--device", "cpu") == []
    assert lines("--quantization", "nf4") == []
    assert lines("--vllm-executable", "/no/such/vllm") == []


def test_nothing_is_recommended_to_other_engines(lines):
    assert lines("--engine", "vllm") == []
    assert lines("--engine", "openai", "--base-url", "http://localhost:1/v1") == []
