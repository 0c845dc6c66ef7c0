"""Estimates of a memory plan: with few layers as with all, and refused where the plan would be of something else."""

from dataclasses import replace

import pytest
from transformers import AutoConfig

from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES
from distill.memory_plan.devices import find_device
from distill.memory_plan.estimate import estimate
from distill.memory_plan.make_plan import fill_plan
from distill.memory_plan.plan_file import Plan
from distill.memory_plan.stage import Generating, ModelShape, Reading, Stage, Training
from distill.memory_plan.table import render_plan

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
}
GPU = find_device("24GB")
LENGTHS = {"prompt_tokens": 64, "answer_tokens": 16}


@pytest.fixture(autouse=True)
def gpu():
    """Fake tensors are made by the estimate itself."""


def make_shape(kind="qwen2", layers=4, **settings):
    return ModelShape(name="m", config=AutoConfig.for_model(kind, num_hidden_layers=layers, **settings).to_dict())


def make_training(student, teacher=None):
    objective = {
        "method": "forward_kl" if teacher else "seqkd",
        "top_k": 8,
        "temperature": 2.0,
        "alpha": 0.5,
        "parameters": {},
    }
    how = {"optimizer": "adamw_torch_fused", "precision": "bf16", "batch_size": 2, "gradient_checkpointing": True}
    return Training(student=student, teacher=teacher, signal="online", lora=None, **objective, **how, **LENGTHS)


def make_generation(model):
    return Generating(model=model, batch_size=4, temperature=0.7, top_p=1.0, **LENGTHS)


@pytest.mark.parametrize("what", ["training", "sampled training", "generation", "reading", "sampled reading"])
def test_few_layers_tell_of_many(what):
    """Student and teacher have different numbers of layers."""
    student, teacher = make_shape(layers=7, **SIZES), make_shape(layers=9, **SIZES)
    work = {
        "training": make_training(student, teacher),
        "sampled training": replace(make_training(student, teacher), signal="topk", tail_samples=4),
        "generation": make_generation(student),
        "reading": Reading(model=teacher, kind="topk", batch_size=4, top_k=8, **LENGTHS),
        "sampled reading": Reading(model=teacher, kind="topk", batch_size=4, top_k=8, tail_samples=4, **LENGTHS),
    }[what]
    few, all_layers = estimate(work, GPU), estimate(work, GPU, exact=True)
    assert few.weights == all_layers.weights
    assert few.live == pytest.approx(all_layers.live, rel=1e-3)
    assert few.live <= few.reserved
    assert few.where.partition(" (")[0] == all_layers.where.partition(" (")[0]


def test_the_heads_of_several_teachers_are_in_memory():
    training = replace(make_training(make_shape(**SIZES), make_shape(**SIZES)), signal="hidden")
    wide = make_shape(**SIZES | {"hidden_size": 128})
    one, two = (estimate(replace(training, more_heads=heads), GPU) for heads in ((), (wide,)))
    assert two.weights - one.weights == 512 * 128 * 2


def test_packed_rows_are_planned_full_of_answers():
    plain = make_training(make_shape(layers=7, **SIZES), make_shape(layers=9, **SIZES))
    packed = replace(plain, row_length=sum(LENGTHS.values()))
    assert packed.records == (4, 1, 39)
    few, all_layers = estimate(packed, GPU), estimate(packed, GPU, exact=True)
    assert few.live == pytest.approx(all_layers.live, rel=1e-3)
    assert few.live > estimate(plain, GPU).live


@pytest.mark.parametrize("name", SCHEMES)
def test_rounded_weights_are_planned(name):
    """They are kept from the forward to the backward pass, as the weights in 16 bits are in training with bf16."""
    pytest.importorskip("torchao", reason="torchao is not installed (requirements-extra.txt)")
    plain = replace(make_training(make_shape(layers=7, **SIZES)), gradient_checkpointing=False, precision="fp32")
    rounded = replace(plain, quantization_aware=name)
    few, all_layers = estimate(rounded, GPU), estimate(rounded, GPU, exact=True)
    assert few.fits == "yes"
    assert few.weights == all_layers.weights == estimate(plain, GPU).weights
    assert few.live == pytest.approx(all_layers.live, rel=1e-2)
    assert few.live > estimate(plain, GPU).live


@pytest.mark.parametrize("signal", ["online", "hidden", "topk"])
def test_a_teacher_with_another_tokenizer_is_planned(signal):
    """Its distribution is read over its whole vocabulary, instead of the part that both models share."""
    student, teacher = make_shape(**SIZES), make_shape(**SIZES | {"vocab_size": 50_000})
    same = replace(make_training(student, teacher), signal=signal)
    found = [estimate(one, GPU) for one in (same, replace(same, cross_tokenizer=True))]
    assert [one.fits for one in found] == ["yes", "yes"]
    if signal != "topk":
        assert found[1].live > found[0].live


def test_other_architectures_are_planned_with_their_attention_and_names():
    gpt2 = make_shape("gpt2", n_embd=64, n_head=4, vocab_size=512)
    assert estimate(make_training(gpt2), GPU).fits == "yes"
    gemma = make_shape("gemma2", head_dim=16, **SIZES)  # without sdpa
    assert estimate(make_training(gemma), GPU).fits == "yes"


def test_generation_in_padded_batches_is_not_planned_as_continuous():
    with pytest.raises(InputError, match="gemma2 generates in padded batches, which are not planned"):
        estimate(make_generation(make_shape("gemma2", head_dim=16, **SIZES)), GPU)


def test_what_does_not_run_on_fake_tensors_is_named_and_the_rest_is_planned():
    experts = make_shape("mixtral", num_local_experts=4, **SIZES)
    stages = [
        Stage(rule="train_student", name="training of s", work=(make_training(experts),)),
        Stage(rule="generate_answers", name="answers", work=(make_generation(make_shape(**SIZES)),)),
    ]
    plan = Plan(GPU.name)
    for _ in fill_plan(plan, stages, GPU):
        pass
    text = render_plan(plan, stages, GPU)
    assert "Not planned: training of s: mixtral does not run on fake tensors: RuntimeError: " in text
    assert "| answers |" in text
    assert list(fill_plan(plan, stages, GPU)) == []
