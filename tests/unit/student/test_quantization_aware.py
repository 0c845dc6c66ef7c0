"""Quantization-aware training: what is written, gradients, resuming, and what it is for."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import build_model, save_model
from training_runs import Killed, assert_same_weights, kill_at, log_lines, make_arguments, train_student, weights
from transformers import AutoModelForCausalLM

import train_student as script
from distill.common import quantization_schemes
from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES
from distill.models import weight_rounding
from distill.models.chat import ChatTemplate
from distill.models.scale_file import SCALES_FILE, read_rounding
from distill.models.weight_rounding import find_rounded_layers, make_rounding
from distill.student.quantization_aware import StraightThrough, add_fake_quantization, check_used
from distill.student.student_run import check_run, list_result_settings

needs_torchao = pytest.mark.skipif(
    weight_rounding.find_spec("torchao") is None, reason="torchao is not installed (requirements-extra.txt)"
)
NUMBERS = {"int4": range(-8, 8), "int8": range(-128, 128), "nvfp4": [0, 0.5, 1, 1.5, 2, 3, 4, 6]}


@pytest.fixture
def wide(models, tmp_path, tokenizer):
    """The models, with a student whose layers have 32·n inputs."""
    models["student"] = save_model(tmp_path / "wide", tokenizer, vocabulary=336, hidden=32, seed=2)
    return models


@pytest.fixture
def coarse(monkeypatch):
    """A scheme with two bits, which costs any student much."""
    monkeypatch.setitem(quantization_schemes.SCHEMES, "int2", replace(SCHEMES["int4"], bits=2, group=16))
    return "int2"


def is_rounded(name):
    return "_proj.weight" in name


def test_the_gradient_of_rounded_weights_is_that_of_the_exact_ones():
    rounding = make_rounding("int4", torch.float32, {})
    weight = torch.randn(4, 32, requires_grad=True)
    gradient = torch.randn(4, 32)
    pytest.importorskip("torchao", reason="torchao is not installed (requirements-extra.txt)")
    rounded = StraightThrough.apply(weight, rounding)
    assert not rounded.equal(weight)
    rounded.backward(gradient)
    assert weight.grad.equal(gradient)


@needs_torchao
def test_only_the_decoders_linear_layers_compute_with_rounded_weights():
    model, other = build_model(hidden=32, tied=True), build_model(hidden=32, tied=True)
    state = torch.get_rng_state()
    names = [name for name, _ in model.named_parameters()]
    add_fake_quantization(model, "int4", torch.float32)
    assert torch.get_rng_state().equal(state)
    assert [name for name, _ in model.named_parameters()] == names
    assert_same_weights(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    for layer in find_rounded_layers(other, "int4").values():
        layer.weight.data = model.weight_rounding.round(layer.weight).values
    ids = torch.arange(20)[None]
    assert model(ids).logits.equal(other(ids).logits)
    model(ids).logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@needs_torchao
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_written_weights_are_numbers_of_the_scheme_times_its_scales(options, wide, records, name, precision):
    run = options(quantization_aware=name, precision=precision)
    train_student(run, records, records[:2])
    found, (rounding, scales) = weights(run), read_rounding(run.out, torch.float32)
    layers = [key.removesuffix(".weight") for key in found if is_rounded(key)]
    assert rounding.name == name
    assert set(layers) == set(scales)
    assert len(layers) == 14
    for layer in layers:
        values, scale = found[f"{layer}.weight"], scales[layer] * rounding.shared_scale
        numbers = values.float().reshape(*scale.shape, -1) / scale[..., None]
        rounded = (2 * numbers).round() / 2 if SCHEMES[name].is_float else numbers.round()
        assert {abs(one) for one in rounded.unique().tolist()} <= {abs(one) for one in NUMBERS[name]}
        assert (rounded * scale[..., None]).reshape(values.shape).to(values.dtype).equal(values)
    card = (run.out / "README.md").read_text()
    assert f"| `quantization_aware` | `{name}` |" in card
    assert f"and the model has the rounded values. {SCHEMES[name].description}\n\n| setting" in card
    with safe_open(run.out / SCALES_FILE, framework="pt") as file:
        assert json.loads(file.metadata()["rounding"])["scheme"] == name


@needs_torchao
def test_the_validation_loss_is_that_of_the_written_model(options, wide, records, tokenizer, coarse):
    """And not that of the exact weights, which a checkpoint has."""
    run = options("seqkd", quantization_aware=coarse, best_checkpoint=True, eval_steps=2)
    train_student(run, records, records[:3])
    best = min(line["val_loss"] for line in log_lines(run) if "val_loss" in line)
    assert score(run.out, records[:3], tokenizer) == pytest.approx(best, rel=1e-5)


def score(folder, records, tokenizer):
    """Cross-entropy per completion token of a model folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return score_model(model, records, tokenizer)


def score_model(model, records, tokenizer):
    chat = ChatTemplate(tokenizer)
    total = count = 0
    for record in records:
        system, prompt, answer = (message["content"] for message in record["messages"])
        start, end = chat.encode_prompt(system, prompt), chat.encode_completion(answer)
        with torch.no_grad():
            logits = model.eval()(torch.tensor([start + end])).logits[0].double()
        rows = logits[len(start) - 1 : -1].log_softmax(-1)
        total -= rows.gather(1, torch.tensor(end)[:, None]).sum().item()
        count += len(end)
    return total / count


@needs_torchao
def test_it_costs_less_than_plain_rounding(options, wide, records, tokenizer, coarse):
    """A trained student goes through a short pass with rounded weights, and through the same pass without."""
    first = options("seqkd", out="first", epochs=25.0, learning_rate=5e-3)
    train_student(first, records, [])
    more = {"model": str(first.out), "epochs": 8.0}
    aware = options("seqkd", out="aware", quantization_aware=coarse, **more)
    other = options("seqkd", out="other", **more)
    for run in (aware, other):
        train_student(run, records, [])
    plain = AutoModelForCausalLM.from_pretrained(other.out, dtype=torch.float32)
    layers = find_rounded_layers(plain, coarse)
    rounding = make_rounding(coarse, torch.float32, layers)
    for layer in layers.values():
        layer.weight.data = rounding.round(layer.weight).values
    exact, rounded = score(other.out, records, tokenizer), score_model(plain, records, tokenizer)
    trained = score(aware.out, records, tokenizer)
    print(exact, trained, rounded)
    assert exact < trained < rounded
    assert rounded - trained > 0.5 * (rounded - exact)


@needs_torchao
def test_a_resumed_training_writes_the_same_bytes(options, wide, records, monkeypatch):
    settings = {"epochs": 3.0, "save_steps": 2, "quantization_aware": "int4"}
    undisturbed, run = options(out="undisturbed", **settings), options(out="killed", **settings)
    train_student(undisturbed, records, records[:2])
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    (folder,) = (run.checkpoints / "s/banks").iterdir()
    exact = load_file(folder / "checkpoint-4" / "model.safetensors")
    name = next(name for name in exact if is_rounded(name))
    assert len(exact[name][0, :32].unique()) > 16, "a checkpoint has the exact weights"
    train_student(run, records, records[:2])
    for file in ("model.safetensors", SCALES_FILE):
        assert (run.out / file).read_bytes() == (undisturbed.out / file).read_bytes()


@needs_torchao
def test_seeds_and_cached_signals_work_with_packing_and_checkpointing(options, wide, records):
    one = options(out="one", quantization_aware="int4", packing=True, gradient_checkpointing=True)
    other = options(out="other", quantization_aware="int4", packing=False, gradient_checkpointing=False)
    for run in (one, other):
        train_student(run, records, [])
    found = [log_lines(run)[0]["loss"] for run in (one, other)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_without_the_option_nothing_is_rounded_and_settings_stay(options, records):
    run = options(epochs=1.0)
    train_student(run, records, [])
    assert not (run.out / SCALES_FILE).parent.exists()
    assert "quantization_aware" not in (run.out / "README.md").read_text()
    assert "quantization_aware" not in json.dumps(list_result_settings(run))
    assert list_result_settings(options(quantization_aware="int4"))["train"]["quantization_aware"] == "int4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora-rank", "4"], "--quantization-aware needs all weights to be trained, without --lora-rank"),
        (["--strategy", "fsdp"], "--quantization-aware needs --strategy ddp"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path, models, capsys, arguments, message):
    argv = [*make_arguments(tmp_path, models), "--quantization-aware", "int4"]
    assert check_run(script.parse_args(argv)) is None
    with pytest.raises(SystemExit):
        script.parse_args([*argv, *arguments])
    assert message in capsys.readouterr().err


def test_a_student_that_does_not_fit_or_a_missing_package_is_named(options, records, monkeypatch):
    monkeypatch.setattr(weight_rounding, "find_spec", lambda name: "found")
    with pytest.raises(InputError, match=r"train.quantization_aware: int4: expected layers with 32·n inputs, found 16"):
        train_student(options(quantization_aware="int4"), records, [])
    monkeypatch.setattr(weight_rounding, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"train.quantization_aware: int4: expected the package torchao"):
        train_student(options(quantization_aware="int4"), records, [])


@needs_torchao
def test_a_model_that_reads_the_weights_of_its_layers_itself_is_refused():
    model = build_model(hidden=32)
    add_fake_quantization(model, "int4", torch.float32)
    check_used("tiny", model)
    attention = model.model.layers[1].mlp
    attention.forward = lambda hidden: torch.nn.functional.linear(hidden, attention.down_proj.weight[:, :32])
    with pytest.raises(InputError, match=r"does not run model.layers.1.mlp.down_proj \(tiny\); set it to null"):
        check_used("tiny", model)
