"""Likelihoods, signals and the checks of models on fake CUDA tensors."""

import pytest
import torch
from fake_gpu import CUDA, VOCABULARY, build_fake_model, make_examples, quantize_fake_model
from peft import LoraConfig, get_peft_model
from synchronisations import Synchronisations
from tiny import build_tokenizer, save_model
from torch._subclasses.fake_tensor import unset_fake_temporarily

from distill.export.export_model import Export, check_stop, compare_logits, read_logits
from distill.generation.sampling import Request, Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.completions import decoder_and_head
from distill.models.split_check import check_split
from distill.teacher import signal_teacher
from distill.teacher.signal_teacher import SignalTeacher, read_head

MODELS = pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
TO_CPU, TO_GPU = "copy from cuda to cpu", "copy from cpu to cuda"


def build(quantization="none"):
    model = build_fake_model(hidden=64, dtype=torch.bfloat16)
    return model if quantization == "none" else quantize_fake_model(model, quantization)


@pytest.fixture
def make_engine(tmp_path):
    def make(model):
        with unset_fake_temporarily():
            source = ModelSource(save_model(tmp_path / "model", build_tokenizer()), device="cuda")
            engine = TransformersEngine(source, Sampling(4, 0.7), None)
        engine.__dict__["model"] = model
        return engine

    return make


@MODELS
def test_likelihoods_are_read_once_a_batch(make_engine, quantization):
    engine = make_engine(build(quantization))
    prompts, completions = [[5] * length for length in range(3, 9)], [[4, 5, 6]] * 5 + [[4]]
    with Synchronisations() as waits:
        scores = engine.score_completions(prompts, completions)
    assert [score.tokens for score in scores] == [3, 3, 3, 3, 3, 1]
    assert sum(waits.found.values()) == 2, waits.found  # losses, and whether each token is the most likely one
    assert {what for what, _ in waits.found} == {TO_CPU}


def test_requests_are_answered(make_engine):
    engine = make_engine(build())
    requests = [Request(number, str(number), "s", "p" * number) for number in range(3)]
    with Synchronisations():
        answers = [pair for pairs in engine.generate(requests) for pair in pairs]
    assert sorted(request.id for request, _ in answers) == [0, 1, 2]
    assert engine.peak_memory_mb() == 0


@MODELS
@pytest.mark.parametrize(("kind", "samples", "tensors"), [("hidden", 0, 2), ("topk", 0, 4), ("topk", 3, 6)])
def test_a_signal_is_copied_once_a_batch(monkeypatch, kind, samples, tensors, quantization):
    monkeypatch.setattr(signal_teacher, "load_model", lambda *_, **__: build(quantization))
    options = {"model": "unused", "adapter": None, "device": "cuda", "dtype": "bfloat16", "quantization": quantization}
    options |= {"kind": kind, "top_k": 4, "temperatures": [1.0, 2.0], "tail_samples": samples}
    teacher = SignalTeacher(options, build_tokenizer(), VOCABULARY)
    examples = make_examples()
    with Synchronisations() as waits:
        found = teacher.compute(examples)
    assert {what: count for (what, _), count in waits.found.items()} == {TO_CPU: tensors}
    assert {tensor.device.type for one in found for tensor in one.values()} == {"cpu"}
    with Synchronisations():
        assert teacher.compare(examples[0], {name: found[0][name] for name in found[0] if name != "completion"})


def test_the_head_of_an_adapter_is_read_as_one_linear_layer():
    model = get_peft_model(build(), LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    with Synchronisations(number=0):  # the difference of their logits
        tensors = read_head(decoder_and_head(model)[1], CUDA, torch.bfloat16)
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    assert tensors["weight"].shape == (352, 64)


@MODELS
def test_decoder_and_head_of_a_model_are_checked(monkeypatch, quantization):
    monkeypatch.setattr("distill.models.split_check.TOLERANCE", 1.0)  # the difference and the largest logit read 1
    with Synchronisations() as waits:
        check_split("model", build(quantization))
    assert waits.found


@MODELS
def test_the_logits_of_an_export_are_compared(quantization):
    tokenizer = build_tokenizer()
    exported, model = build(quantization), build()
    with Synchronisations():
        found = [read_logits(one, [5, 6, 7]) for one in (exported, model)]
        assert {logits.device.type for logits in found} == {"cpu"}
        assert compare_logits(*found) == (1.0, 1.0)
        check_stop(Export("student", "nf4", "bfloat16", "cuda"), exported, tokenizer, [5, 6, 7])
