"""The benchmarks of vLLM, with the stand-in in its place."""

from types import SimpleNamespace

import pytest
from benchmark_modules import import_benchmark
from tiny import save_model
from vllm_stand_in import write_executable

from distill.common.files import write_jsonl

generation = import_benchmark("generation")
signals = import_benchmark("signals")

WIDTH = 16


@pytest.fixture
def arguments(tmp_path, tokenizer):
    """Options that both benchmarks have."""
    records = [
        {"messages": [{"role": "system", "content": "You estimate."}, {"role": "user", "content": f"me={number}"}]}
        for number in range(3)
    ]
    write_jsonl(tmp_path / "prompts.jsonl", records)
    return SimpleNamespace(
        model=save_model(tmp_path / "model", tokenizer, vocabulary=len(tokenizer), hidden=WIDTH),
        prompts=tmp_path / "prompts.jsonl",
        records=2,
        dtype="float32",
        device="cpu",
        batch_size=None,
        shape=None,
        vllm_executable=str(write_executable(tmp_path / "bin")),
        vllm_arguments={},
        vllm_start_timeout=120.0,
    )


def test_generation_by_vllm_is_measured_apart_from_its_start(arguments):
    arguments.max_new_tokens = 6
    found, texts, prompt_tokens = generation.measure_vllm(arguments)
    assert len(texts) == 2
    assert 2 <= found["generated_tokens"] <= 12
    assert prompt_tokens > 2
    assert found["start_seconds"] > 0
    assert found["peak_memory_mb"] is None


@pytest.mark.parametrize("kind", signals.SIGNALS)
def test_signals_by_vllm_are_measured(arguments, kind):
    vars(arguments).update(completion_tokens=5, top_k=4)
    sent = []
    signals.measure("vllm", kind, arguments, SimpleNamespace(send=sent.append))
    (found,) = sent
    assert found["records"] == 2
    assert found["positions_per_second"] > found["completion_tokens_per_second"] > 0
    # Of 4 tokens, ids of 9 bits, the lower 13 bits of log-probabilities and a map of 7; the tail; the id of the token.
    assert found["disk_bytes_per_token"] == (2 * WIDTH + 4 if kind == "hidden" else 5 + 7 + 1 + 2 + 2)
    assert found["reply_bytes_per_token"] > 10
