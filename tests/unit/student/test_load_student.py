"""Which students are refused before training, and which weights LoRA adapts."""

import json

import pytest
import torch
from architectures import build as build_type
from architectures import make_config
from peft import PeftModel
from tiny import build_model
from training_runs import assert_same_weights, train_student, weights
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GptOssConfig,
    JetMoeConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from distill.common.errors import InputError
from distill.models.split_check import check_split
from distill.student.fsdp import list_layers
from distill.student.load_student import add_lora, check_student, list_expert_weights, load_student
from distill.student.options import LoraOptions

SHAPE = {"vocab_size": 336, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 512}
SHAPE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
QWEN3_MOE = Qwen3MoeConfig(
    **SHAPE, **ENDS, head_dim=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, decoder_sparse_step=1
)
GPT_OSS = GptOssConfig(**SHAPE, head_dim=4, num_local_experts=4, num_experts_per_tok=2)
EXPERTS = [f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("down_proj", "gate_up_proj")]
LORA = LoraOptions(rank=2, alpha=8.0, dropout=0.0)


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


# ---- LoRA on mixtures of experts ----


def test_lora_on_all_modules_trains_the_experts_and_is_merged(options, records, tokenizer, tmp_path):
    build(QWEN3_MOE).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    settings = {"lora_rank": 2, "lora_dropout": 0.0, "lora_alpha": 8.0, "learning_rate": 3e-2}
    run = options(model=str(tmp_path / "experts"), epochs=6.0, **settings)
    train_student(run, records, [])
    base = AutoModelForCausalLM.from_pretrained(run.model)
    before = {name: base.state_dict()[name].clone() for name in EXPERTS}
    adapted = PeftModel.from_pretrained(base, run.out / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(run.out)
    assert all((merged.state_dict()[name] - before[name]).abs().amax((1, 2)).min() > 1e-4 for name in EXPERTS)
    tokens = torch.arange(10, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN3_MOE, EXPERTS),
        (MixtralConfig(**SHAPE, num_local_experts=4), EXPERTS),
        (GPT_OSS, EXPERTS),
        (
            JetMoeConfig(**SHAPE, kv_channels=4, num_local_experts=4),
            [
                f"model.layers.{layer}.{name}_linear.weight"
                for layer in (0, 1)
                for name in ("mlp.input", "mlp.output", "self_attention.experts.input", "self_attention.experts.output")
            ],
        ),
        (GPT2Config(n_layer=2, n_head=4, n_embd=16), []),
    ],
    ids=["Qwen3-MoE", "Mixtral", "gpt-oss", "JetMoE", "GPT-2"],
)
def test_the_weights_of_experts_are_found_and_adapted(config, expected):
    model = build(config)
    assert list_expert_weights(model) == expected
    before = {name: weight.clone() for name, weight in model.named_parameters() if name in expected}
    adapted = add_lora(model, LORA)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    merged = dict(adapted.merge_and_unload().named_parameters())
    assert all((merged[name] - weight).abs().amax((1, 2)).min() > 0 for name, weight in before.items())


def test_experts_with_dropout_are_refused_before_training():
    with pytest.raises(InputError, match=r"lora.dropout: expected 0, .* \(model.layers.0.mlp.experts.down_proj and"):
        add_lora(build(QWEN3_MOE), LoraOptions())


@pytest.mark.parametrize(
    ("target", "said"),
    [(["gate_proj"], "lora.target: expected names .*, found 'gate_proj'"), (["all"], "lora.dropout")],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_teacher_is_loaded(
    options, records, tmp_path, monkeypatch, target, said
):
    """The experts' gate_proj and up_proj are one weight, gate_up_proj."""
    QWEN3_MOE.save_pretrained(tmp_path / "experts")
    monkeypatch.setattr("distill.student.train_student.load_teacher", None)
    with pytest.raises(InputError, match=said):
        train_student(options(model=str(tmp_path / "experts"), lora_rank=2, lora_target=target), records, [])


def test_targets_may_name_modules_and_experts():
    adapted = add_lora(build(QWEN3_MOE), LoraOptions(2, 8.0, 0.0, ["q_proj", "experts.gate_up_proj"]))
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    kinds = {name.partition("layers.0.")[2].partition(".lora")[0] for name in trained if "layers.0." in name}
    assert kinds == {"self_attn.q_proj", "mlp.experts"}
    add_lora(build(QWEN3_MOE), LoraOptions(2, 8.0, 0.05, ["q_proj"]))  # dropout is fine without experts


def test_targets_may_name_experts_alone(tmp_path):
    adapted = add_lora(build(QWEN3_MOE), LoraOptions(2, 8.0, 0.0, ["gate_up_proj"]))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trained) == 4
    assert all("mlp.experts" in name for name in trained)


def test_a_target_that_fits_nothing_is_refused():
    """PEFT ignores it if another one fits."""
    with pytest.raises(InputError, match=r"lora.target: expected names among .*down_proj.*, found 'gate'"):
        add_lora(build_model(), LoraOptions(2, 8.0, 0.0, ["q_proj", "gate"]))


def test_weights_without_an_adapter_are_logged(caplog):
    with caplog.at_level("INFO"):
        add_lora(build(GPT_OSS), LORA)
    assert "lora: no adapter on mlp.router.weight" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        add_lora(build_model(), LORA)
    assert "no adapter" not in caplog.text


@pytest.mark.parametrize(
    "model_type", ["llama4_text", "phimoe", "falcon_h1", "mamba", "nemotron_h", "falcon", "jetmoe"]
)
def test_all_leaves_out_layers_that_an_adapter_does_not_fit(model_type):
    model = build_type(model_type)
    adapted = add_lora(model, LORA)
    check_split(model_type, adapted)
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert any("_proj" in name or "dense" in name for name in names)


def test_other_modules_of_the_name_are_an_error():
    """PEFT takes the shared expert's projection for that of all experts, as in an older version of transformers."""
    model = build_type("qwen3_next")
    with pytest.raises(InputError, match=r"lora.target: expected an adapter of shared_expert.down_proj, but PEFT's "):
        add_lora(model, LoraOptions(2, 8.0, 0.0, ["shared_expert.down_proj"]))
    with pytest.raises(InputError, match=r"lora.target: expected an adapter of down_proj, but PEFT's lacks"):
        add_lora(build_type("glm4_moe"), LoraOptions(2, 8.0, 0.0, ["down_proj"]))


# ---- Refusals ----


@pytest.mark.parametrize("model_type", ["openai-gpt", "jetmoe"])
def test_a_model_without_gradient_checkpointing_is_trained_without_it(options, tmp_path, caplog, model_type):
    build_type(model_type).save_pretrained(tmp_path / "model")
    run = options(model=str(tmp_path / "model"), gradient_checkpointing=True)
    assert not check_student(run).train.gradient_checkpointing
    assert "has no gradient checkpointing: training without it" in caplog.text


@pytest.mark.parametrize("lora", [None, 2], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_a_quantized_student_is_refused_before_the_teacher_is_loaded(options, records, monkeypatch, lora, method):
    run = options(lora_rank=lora)
    path = f"{run.model}/config.json"
    with open(path) as file:
        config = json.load(file) | {"quantization_config": {"quant_method": method, "load_in_8bit": True}}
    with open(path, "w") as file:
        json.dump(config, file)
    monkeypatch.setattr("distill.student.train_student.load_teacher", None)
    with pytest.raises(InputError, match=f"student: expected a student with weights that are not .*{method}"):
        train_student(run, records, [])


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (GPT2Config(n_layer=3, n_head=4, n_embd=16), 3),
        (FalconConfig(**SHAPE), 2),
        (QWEN3_MOE, 2),
    ],
    ids=["GPT-2", "Falcon", "Qwen3-MoE"],
)
def test_layers_are_found_whatever_their_name(config, layers):
    model = build(config)
    found = list_layers(model)
    assert len(found) == layers
    assert all(type(layer) is type(found[0]) for layer in found)
    assert list_layers(add_lora(model, LORA)) == found


def test_fsdp_without_a_list_of_layers_is_refused(options, records, monkeypatch):
    monkeypatch.setattr("distill.student.fsdp.find_layer_lists", lambda model: {})
    monkeypatch.setattr("distill.student.train_student.init_distributed", None)
    with pytest.raises(InputError, match="expected a decoder with a list of its layers, found none in Qwen2Model; set"):
        train_student(options(strategy="fsdp"), records, [])


def test_the_choice_of_targets_does_not_change_the_weights(options, records):
    run = options(lora_rank=2, lora_target=["q_proj"], lora_dropout=0.0, epochs=1.0)
    train_student(run, records, [])
    found = weights(run)
    before = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    others = [name for name in found if "q_proj.weight" not in name]
    assert_same_weights({n: found[n] for n in others}, {n: before[n] for n in others}, rtol=2**-8, atol=1e-6)


def test_a_part_of_a_model_that_cannot_be_loaded_alone_is_refused(options, tokenizer, tmp_path):
    """transformers loads the text part of Emu 3, whose configuration is that of no model by itself."""
    build_type("emu3").save_pretrained(tmp_path / "emu")
    make_config("emu3").save_pretrained(tmp_path / "emu")
    tokenizer.save_pretrained(tmp_path / "emu")
    run = options(model=str(tmp_path / "emu"))
    with pytest.raises(InputError, match="cannot be trained: transformers loads it as a part of emu3"):
        load_student(run, torch.device("cpu"))
