"""Continuous batching and padded batches on fake CUDA tensors: devices agree, and each token is read once."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fake_gpu import VOCABULARY, build_fake_model, quantize_fake_model
from synchronisations import Synchronisations
from tiny import build_tokenizer

from distill.generation.generate import Draw, decode_padded
from distill.generation.kv_cache import RowLimit
from distill.generation.rolling_batch import Job, RollingBatch
from distill.generation.sampling import Sampling

SHARED = list(range(10, 50))  # a prefix that is worth a prefill of its own
PROMPTS = [*([*SHARED, 60 + number] for number in range(4)), [5] * 7, [6] * 9]
LONGEST = [3, 4, 5, 6, 3, 4]


def make_job(temperature=0.7, top_p=1.0, top_k=0, prompts=PROMPTS, longest=LONGEST):
    uniforms = (lambda index: np.full(max(longest), 0.5)) if temperature else None
    draw = Draw(Sampling(max(longest), temperature, top_p, top_k), VOCABULARY, [3])
    return Job(prompts, longest, [7], uniforms, draw)


def make_batch(quantization="none", rows=3, dtype=torch.bfloat16, **sampling):
    model = build_fake_model(hidden=64, dtype=dtype)
    if quantization != "none":
        quantize_fake_model(model, quantization)
    return RollingBatch(model, make_job(**sampling), RowLimit(rows, {model.device: 1}))


@contextmanager
def waiting(copies, reads):
    """Hold how often the CPU waits for the GPU: for copies to it, and to read sampled tokens."""
    with Synchronisations() as waits:
        yield waits
    found = Counter()
    for (what, _), count in waits.found.items():
        found[what] += count
    assert found == Counter({"copy from cpu to cuda": copies, "read": reads}), waits.found


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {}, {"top_p": 0.9, "top_k": 20}], ids=["greedy", "sampled", "top_p"]
)
def test_every_stage_of_continuous_batching(quantization, sampling):
    batch = make_batch(quantization, **sampling)
    # The prompts with the shared prefix wait for the first of them, which is prefilled with two others.
    with waiting(copies=1, reads=1):  # the list of unused ids, once
        batch.admit()
    assert len(batch.rows) == 3
    assert len(batch.followers) == 3
    assert {layer.keys.device.type for layer in batch.cache.slots} == {"cuda"}
    for _ in range(2):
        with waiting(copies=0, reads=1):
            batch.step()
    with waiting(copies=0, reads=0):
        finished = batch.remove_finished()
    assert sorted(index for index, _ in finished) == [0, 4]
    with waiting(copies=0, reads=2):  # behind the shared prefix; transformers reads whether the mask hides anything
        batch.admit()
    assert len(batch.rows) == 3
    with waiting(copies=0, reads=1):
        batch.step()


def test_all_prompts_are_answered():
    batch = make_batch()
    with Synchronisations() as waits:
        answers = dict(pair for finished in batch.run() for pair in finished)
    assert {index: len(tokens) for index, tokens in answers.items()} == dict(enumerate(LONGEST))
    assert not batch.rows
    assert waits.total()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_data_types(dtype):
    batch = make_batch(dtype=dtype)
    with Synchronisations():
        assert sum(len(finished) for finished in batch.run()) == len(PROMPTS)


def test_a_restart_frees_the_cache_and_goes_on():
    batch = make_batch()
    with Synchronisations():
        batch.admit()
        batch.step()
        assert batch.cache.nbytes
        assert batch.limit.halve()
        with waiting(copies=0, reads=0):
            batch.restart()
        assert (batch.cache.nbytes, batch.rows, batch.waiting) == (0, [], len(PROMPTS))
        answers = dict(pair for finished in batch.run() for pair in finished)
    assert len(answers) == len(PROMPTS)


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_that_runs_out_halves_the_batch(monkeypatch, words):
    batch = make_batch()
    step, sizes = RollingBatch.step, []

    def fail_at_full_size(self):
        sizes.append(len(self.rows))
        if len(self.rows) > 1:
            raise RuntimeError(words)
        return step(self)

    monkeypatch.setattr(RollingBatch, "step", fail_at_full_size)
    with Synchronisations():
        answers = dict(pair for finished in batch.run() for pair in finished)
    assert len(answers) == len(PROMPTS)
    assert sizes[0] == 3
    assert set(sizes[1:]) == {1}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {}], ids=["greedy", "sampled"])
def test_padded_batches(sampling):
    model, tokenizer = build_fake_model(hidden=64, dtype=torch.bfloat16), build_tokenizer()
    job = make_job(**sampling)
    # Each check of the drawn tokens reads False: all are numbers of tokens.
    with Synchronisations(untrue=["generate.py: __call__"]):
        answers = dict(pair for finished in decode_padded(model, tokenizer, job, 2) for pair in finished)
    assert set(answers) == set(range(len(PROMPTS)))
