"""Rounding of weights, against formulas in float64, and the layers that it applies to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import build_model
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from distill.common import quantization_schemes
from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES
from distill.models import weight_rounding
from distill.models.weight_rounding import WeightRounding, check_torchao, find_rounded_layers, make_rounding

needs_torchao = pytest.mark.skipif(
    weight_rounding.find_spec("torchao") is None, reason="torchao is not installed (requirements-extra.txt)"
)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def make_weight(rows=24, inputs=64):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, inputs, generator=generator) * torch.rand(rows, 1, generator=generator)
    weight[5] = 0
    return weight


def round_integers(weight, bits, group, dtype):
    """Symmetric integers in float64, with scales in the data type of the model.

    Returns:
        The values, the scales, and which values are determined: half-way between two integers, as the largest weight of
        each group is with exact scales, the last bit decides.
    """
    groups = weight.double().numpy().reshape(len(weight), -1, group or weight.shape[1])
    scale = np.abs(groups).max(-1) / ((2**bits - 1) / 2)
    scale = torch.tensor(np.maximum(scale, 2.0**-23)).to(dtype).double().numpy()
    numbers = np.clip(np.rint(groups / scale[..., None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    is_tie = np.abs(np.abs(groups / scale[..., None]) % 1 - 0.5) < 1e-4
    return (numbers * scale[..., None]).reshape(weight.shape), scale, ~is_tie.reshape(weight.shape)


def check_integers(found, weight, bits, group, dtype):
    values, scale, is_determined = round_integers(weight, bits, group, dtype)
    np.testing.assert_allclose(found.scale.numpy(), scale, rtol=1e-6)
    np.testing.assert_allclose(found.values.numpy()[is_determined], values[is_determined], rtol=1e-6)
    steps = np.repeat(scale, weight.shape[1] // scale.shape[1], axis=1)
    assert (np.abs(found.values.numpy() - values) <= 1.001 * steps).all()
    assert is_determined.mean() > 0.9


def round_e4m3(values):
    """The nearest numbers of E4M3 that are positive and normal or subnormal, at most 448."""
    step = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(values, 2.0**-9))) - 3, -9)
    return np.minimum(np.rint(values / step) * step, 448)


def round_floats(weight, shared):
    """NVFP4 in float64."""
    blocks = weight.double().numpy().reshape(len(weight), -1, 16)
    scale = round_e4m3(np.abs(blocks).max(-1) / 6 / shared)
    scaled = np.divide(blocks, (scale * shared)[..., None], where=scale[..., None] > 0, out=np.zeros_like(blocks))
    nearest = E2M1[np.abs(np.abs(scaled)[..., None] - E2M1).argmin(-1)]
    return (np.sign(blocks) * nearest * (scale * shared)[..., None]).reshape(weight.shape), scale


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_integers_are_those_of_the_formula(name, dtype):
    weight = make_weight()
    found = WeightRounding(name, dtype).round(weight)
    check_integers(found, weight, SCHEMES[name].bits, SCHEMES[name].group, dtype)
    assert found.scale.to(dtype).float().equal(found.scale)
    assert len(np.unique(found.values[0, :32].numpy())) > 8


@needs_torchao
def test_nvfp4_is_that_of_the_formula():
    weight = make_weight()
    rounding = make_rounding("nvfp4", torch.bfloat16, {"layer": torch.nn.Linear(1, 1), "other": as_layer(weight)})
    assert np.log2(rounding.shared_scale) == int(np.log2(rounding.shared_scale))
    found = rounding.round(weight)
    values, scale = round_floats(weight, rounding.shared_scale)
    kept = np.abs(weight.numpy()).max(1) > 0  # rows of zeros have the smallest scale
    np.testing.assert_allclose(found.scale.numpy()[kept], scale[kept], rtol=1e-6)
    np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-6)
    assert found.values.to(torch.bfloat16).float().equal(found.values), "no product is rounded"
    assert found.scale.max() <= 448 / 2 < 4 * found.scale.max(), "room for weights to grow, and not much more"


def as_layer(weight):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


@needs_torchao
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_integers_are_those_of_torchaos_own_fake_quantization(name):
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

    dtype = {"int4": torch.int4, "int8": torch.int8}[name]
    group = SCHEMES[name].group
    config = IntxFakeQuantizeConfig(dtype, group_size=group) if group else IntxFakeQuantizeConfig(dtype, "per_channel")
    weight = make_weight()
    found = WeightRounding(name, torch.float32).round(weight).values
    torch.testing.assert_close(found, IntxFakeQuantizer(config)(weight), rtol=1e-6, atol=1e-12)


@needs_torchao
@pytest.mark.parametrize("name", SCHEMES)
def test_weights_beyond_the_range_of_nvfp4_and_tiny_ones_stay_finite(name):
    weight = make_weight()
    rounding = make_rounding(name, torch.float16, {"layer": as_layer(weight)})
    for factor in (1e-6, 100.0):
        assert rounding.round(weight * factor).values.isfinite().all()


def test_all_linear_layers_but_the_head_are_rounded():
    model = build_model(hidden=32)
    names = list(find_rounded_layers(model, "int4"))
    assert len(names) == 2 * 7
    assert all(name.startswith("model.layers.") for name in names)


def test_layers_that_do_not_fit_are_named():
    with pytest.raises(
        InputError, match=r"layers with 32·n inputs, found 16 in model.layers.0.self_attn.q_proj of Qwen2"
    ):
        find_rounded_layers(build_model(hidden=16), "int4")
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(InputError, match="expected linear layers, found none in GPT2LMHeadModel"):
        find_rounded_layers(GPT2LMHeadModel(config), "int8")
    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    with pytest.raises(InputError, match=r"expected linear layers, found the weights of experts in Qwen2Moe"):
        find_rounded_layers(Qwen2MoeForCausalLM(config), "int8")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(weight_rounding, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"quantization_aware: int4: expected the package torchao, .*pip install torchao"
    ):
        check_torchao("quantization_aware: int4")


@needs_torchao
def test_a_coarser_scheme_is_an_entry_of_the_registry(monkeypatch):
    coarse = replace(SCHEMES["int4"], bits=2, group=16)
    monkeypatch.setitem(quantization_schemes.SCHEMES, "int2", coarse)
    weight = make_weight()
    found = WeightRounding("int2", torch.float32).round(weight)
    check_integers(found, weight, 2, 16, torch.float32)
