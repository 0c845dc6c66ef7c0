"""Whole trainings on fake CUDA tensors: devices agree, and nothing waits for the GPU but the log and the validation."""

import pytest
import torch
from fake_gpu import (
    CUDA,
    VOCABULARY,
    FakeReader,
    build_fake_model,
    build_student,
    make_examples,
    make_trainer,
    quantize_fake_model,
)
from synchronisations import Synchronisations
from tiny import build_tokenizer

from distill.common.quantization_schemes import SCHEMES
from distill.models.chat import ChatTemplate
from distill.models.token_alignment import TokenGroups
from distill.models.weight_rounding import WeightRounding
from distill.student.cross_tokenizer import CrossTokenizerSignal
from distill.student.divergences import METHODS
from distill.student.load_student import add_lora
from distill.student.on_policy import SampleBuffer
from distill.student.options import LoraOptions, OnPolicyOptions
from distill.student.quantization_aware import compute_rounded
from distill.student.teacher_signal import HiddenSignal, OnlineTeacher, TopKSignal
from distill.student.validation_samples import ValidationSamples

STEPS = 2
GENERATION = ("rolling_batch.py", "kv_cache.py", "generate.py")
# What a training waits for: the Trainer's own start, and for every line of the log (one per step here) its numbers.
EXPECTED = {
    ("copy from cpu to cuda", "trainer.py: _inner_training_loop"): 1,
    ("read", "trainer.py: _maybe_log_save_evaluate"): 2 * STEPS,  # loss and gradient norm
    ("read", "trainer.py: _finalize_training"): 1,
    ("read", "callbacks.py: check"): STEPS,
    ("copy from cpu to cuda", "training_meter.py: summarize"): STEPS,
    ("read", "training_meter.py: summarize"): STEPS,
    ("read", "training_meter.py: summarize_validation"): 1,
}


def train(trainer, more=None):
    """Train; compare what waits for the GPU with EXPECTED and more of it. What generation waits for is returned."""
    with Synchronisations() as waits:
        trainer.train()
    assert trainer.state.global_step == STEPS
    sampling = {pair: count for pair, count in waits.found.items() if pair[1].startswith(GENERATION)}
    assert waits.found == EXPECTED | sampling | (more or {})
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert trained
    assert {weight.device.type for weight in trained} == {"cuda"}
    states = [one for state in trainer.optimizer.state.values() for one in state.values()]
    assert {one.device.type for one in states if isinstance(one, torch.Tensor)} == {"cuda"}
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert any("val_loss" in line for line in trainer.state.log_history)
    return sampling


def build_teacher(quantization="none"):
    teacher = build_fake_model(hidden=64, dtype=torch.bfloat16)
    return OnlineTeacher(teacher if quantization == "none" else quantize_fake_model(teacher, quantization), 0)


def build_signal(name):
    if name == "online":
        return build_teacher()
    readers = [FakeReader(64, make_examples(), tail_samples=3 if name == "topk, sampled" else 0)]
    return HiddenSignal(readers, CUDA, [torch.bfloat16]) if name == "hidden" else TopKSignal(readers, 2.0)


@pytest.mark.parametrize(
    ("method", "signal"),
    [
        (method, signal)
        for method, one in METHODS.items()
        for signal in (("online", "hidden", "topk") if one.needs_teacher else (None,))
    ]
    + [(method, "topk, sampled") for method, one in METHODS.items() if one.is_linear],
)
def test_methods_and_signals(tmp_path, method, signal):
    train(make_trainer(tmp_path, build_student(), signal and build_signal(signal), method))


class Aligned(CrossTokenizerSignal):
    """Answers have the same tokens in both tokenizers, in spans of two."""

    def __call__(self, examples, batch, device):
        own = ({"teacher_completion": one["completion"], "spans": [(0, 0), (2, 2)]} for one in examples)
        return super().__call__([one | other for one, other in zip(examples, own, strict=True)], batch, device)


@pytest.mark.parametrize("signal", ["online", "hidden", "topk"])
def test_another_tokenizer(tmp_path, signal):
    groups = TokenGroups([2 + token % 60 for token in range(VOCABULARY)], [2 + token % 50 for token in range(300)], 62)
    train(make_trainer(tmp_path, build_student(), Aligned(build_signal(signal), groups, 2.0), "forward_kl"))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions(tmp_path, precision, checkpointing):
    settings = {"precision": precision, "gradient_checkpointing": checkpointing}
    trainer = make_trainer(tmp_path, build_student(), build_teacher(), "forward_kl", **settings)
    assert trainer.args.mixed_precision == ("no" if precision == "fp32" else precision)
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")
    assert not train(trainer)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("name", SCHEMES)
def test_quantization_aware_training(tmp_path, name, checkpointing):
    pytest.importorskip("torchao", reason="torchao is not installed (requirements-extra.txt)")
    student = build_student(hidden=64)
    compute_rounded(student, WeightRounding(name, torch.bfloat16))
    settings = {"precision": "bf16", "gradient_checkpointing": checkpointing}
    assert not train(make_trainer(tmp_path, student, build_teacher(), "forward_kl", **settings))


def test_a_teacher_with_its_own_chat_template(tmp_path):
    trainer = make_trainer(tmp_path, build_student(), build_teacher(), "jsd", own_template=True)
    train(trainer)


@pytest.mark.parametrize("row_length", [16, 40], ids=["rows of one record", "rows of two records"])
@pytest.mark.parametrize("own_template", [False, True])
def test_packed_rows(tmp_path, own_template, row_length):
    """Two records fill both micro-batches of a step, or share the only row of one."""
    trainer = make_trainer(
        tmp_path, build_student(), build_teacher(), "forward_kl", own_template=own_template,
        packing=True, max_length=row_length,
    )  # fmt: skip
    calls = []
    trainer.model.model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    assert not train(trainer)
    assert len(calls) - 2 == STEPS * (2 if row_length == 16 else 1)  # two are of the validation


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_teacher(tmp_path, quantization):
    train(make_trainer(tmp_path, build_student(), build_teacher(quantization), "forward_kl"))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("target", ["all", ["q_proj", "lm_head"]], ids=["all", "head"])
def test_lora(tmp_path, target, checkpointing):
    model = add_lora(build_student(), LoraOptions(rank=4, target=target, dropout=0.1))
    trainer = make_trainer(
        tmp_path, model, build_teacher(), "forward_kl", gradient_checkpointing=checkpointing, precision="bf16"
    )
    train(trainer)


def test_tied_embeddings(tmp_path):
    train(make_trainer(tmp_path, build_student(tied=True), build_teacher(), "forward_kl"))


def test_the_8_bit_optimizer(tmp_path):
    """bitsandbytes itself waits for the GPU after every weight."""
    trainer = make_trainer(tmp_path, build_student(), optimizer="adamw_bnb_8bit")
    weights = len(list(trainer.model.parameters()))
    own = {
        ("synchronize", "utils.py: sync_gpu"): weights * STEPS,
        ("copy from cpu to cuda", "optimizer.py: init_state"): 2,
    }
    train(trainer, own)


def test_on_policy_steps(tmp_path):
    """All answers of 4 tokens are sampled together, and every token is read once."""

    def sampler(examples, batches):
        options = OnPolicyOptions(fraction=1.0, max_new_tokens=4, steps=STEPS)
        return SampleBuffer(options, examples, batches, build_tokenizer(), seed=0, max_length=64, vocabulary=VOCABULARY)

    trainer = make_trainer(tmp_path, build_student(), build_teacher(), "reverse_kl", sampler=sampler)
    waits = train(trainer)
    assert sum(count for (what, _), count in waits.items() if what == "read") == 4


def test_answers_to_validation_prompts(tmp_path):
    """One validation; a batch has one record, so its two prompts are answered one by one, in 4 tokens each."""
    texts = [(f"{n}: be brief.", "me=1: estimate", "up") for n in range(2)]
    roles = ("system", "user", "assistant")
    messages = [[{"role": role, "content": text} for role, text in zip(roles, one, strict=True)] for one in texts]
    records = [{"id": n, "uid": str(n), "finish_reason": "stop", "messages": messages[n]} for n in range(2)]
    samples = ValidationSamples(records, ChatTemplate(build_tokenizer()), 4)
    trainer = make_trainer(tmp_path, build_student(), build_teacher(), "forward_kl", samples=samples)
    waits = train(trainer)
    assert sum(count for (what, _), count in waits.items() if what == "read") == 2 * 4
    (line,) = [line for line in trainer.state.log_history if "val_loss" in line]
    assert [one["tokens"] for one in line["samples"]] == [4, 4]
    assert trainer.model.training
