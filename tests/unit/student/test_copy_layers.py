"""Students initialised with layers of their teacher."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import build_model, count_generated, save_base_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import copy_layers as script
from distill.common.errors import InputError
from distill.models.load import load_model
from distill.student.copy_layers import choose_layers, copy_layers

IDS = torch.arange(5, 45).reshape(2, 20)
CPU = torch.device("cpu")


def save_teacher(folder, tokenizer, layers=5, tied=False):
    """A teacher whose layers all differ, including their norms."""
    model = build_model(layers=layers, tied=tied)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight += torch.rand(weight.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def logits_of(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def layer_of(weights, number):
    start = f"model.layers.{number}."
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


@pytest.mark.parametrize(
    ("total", "kept", "chosen"),
    [
        (28, 10, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (5, 3, [0, 2, 4]),
        (5, 2, [0, 4]),
        (4, 3, [0, 2, 3]),
        (30, 1, [0]),
        (1, 1, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_layers_are_evenly_spaced_from_first_to_last(total, kept, chosen):
    assert choose_layers(total, kept) == chosen


def test_chosen_layers_are_distinct():
    for total in range(1, 40):
        for kept in range(1, total + 1):
            chosen = choose_layers(total, kept)
            assert chosen == sorted(set(chosen))
            assert (len(chosen), chosen[0], chosen[-1]) == (kept, 0, total - 1 if kept > 1 else 0)


@pytest.mark.parametrize("tied", [False, True])
def test_the_copy_has_the_tensors_of_the_teacher(tmp_path, tokenizer, tied):
    teacher = save_teacher(tmp_path / "teacher", tokenizer, tied=tied)
    assert copy_layers(teacher, None, "float32", 3, tmp_path / "copy") == [0, 2, 4]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("teacher", "copy"))
    assert ("lm_head.weight" in after) == (not tied)
    for new, old in enumerate([0, 2, 4]):
        kept, taken = layer_of(after, new), layer_of(before, old)
        assert kept.keys() == taken.keys() != set()
        assert all(kept[name].equal(taken[name]) for name in kept)
    others = {name for name in before if not name.startswith("model.layers.")}
    assert others == {name for name in after if not name.startswith("model.layers.")}
    assert all(after[name].equal(before[name]) for name in others)
    assert not layer_of(after, 3)


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_of_all_layers_has_the_logits_of_the_teacher(tmp_path, tokenizer, tied):
    teacher = save_teacher(tmp_path / "teacher", tokenizer, tied=tied)
    copy_layers(teacher, None, "float32", 5, tmp_path / "copy")
    assert logits_of(tmp_path / "copy").equal(logits_of(teacher))


def test_the_copy_computes_the_same_as_its_layers_in_the_teacher(tmp_path, tokenizer):
    """Compared with the teacher after its other layers are removed."""
    teacher = save_teacher(tmp_path / "teacher", tokenizer)
    copy_layers(teacher, None, "float32", 2, tmp_path / "copy")
    whole = AutoModelForCausalLM.from_pretrained(teacher)
    del whole.model.layers[1:4]
    whole.config.num_hidden_layers = 2
    with torch.no_grad():
        expected = whole(IDS, use_cache=False).logits
    assert torch.allclose(logits_of(tmp_path / "copy"), expected, atol=1e-6)
    assert not torch.allclose(logits_of(teacher), expected, atol=1e-2)


def test_the_folder_is_an_ordinary_model(tmp_path, tokenizer):
    teacher = save_teacher(tmp_path / "teacher", tokenizer)
    options = ["--model", teacher, "--layers", "3", "--dtype", "bfloat16", "--out", str(tmp_path / "copy")]
    script.main(options)
    config = json.loads((tmp_path / "copy/config.json").read_text())
    assert (config["num_hidden_layers"], len(config["layer_types"]), config["dtype"]) == (3, 3, "bfloat16")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"}
    copied, original = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("copy", "teacher"))
    assert copied.chat_template == original.chat_template
    assert copied.get_vocab() == original.get_vocab()
    model = load_model(str(tmp_path / "copy"), CPU, torch.float32, trainable=True)
    assert len(model.model.layers) == 3
    generated = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").generate(IDS, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > IDS.shape[1]


def test_a_copy_of_a_base_model_stops_in_other_programs(tmp_path):
    teacher = save_base_model(tmp_path / "teacher", layers=5)
    copy_layers(teacher, None, "float32", 3, tmp_path / "copy")
    assert [count_generated(tmp_path / "copy", token) for token in (0, 2)] == [1, 1]
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").eos_token == "<|im_end|>"


def test_the_adapter_is_merged(tmp_path, tokenizer):
    teacher = save_teacher(tmp_path / "teacher", tokenizer)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(teacher), lora).save_pretrained(tmp_path / "adapter")
    copy_layers(teacher, str(tmp_path / "adapter"), "float32", 3, tmp_path / "copy")
    merged = load_model(teacher, CPU, torch.float32, adapter=str(tmp_path / "adapter")).state_dict()
    plain, copied = (load_file(tmp_path / name / "model.safetensors") for name in ("teacher", "copy"))
    name = "self_attn.q_proj.weight"
    assert layer_of(copied, 1)[name].equal(merged[f"model.layers.2.{name}"])
    assert not layer_of(copied, 1)[name].equal(layer_of(plain, 2)[name])
    assert not any("lora" in name for name in copied)


def test_the_configuration_keeps_the_kinds_of_the_layers(tmp_path, tokenizer):
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    shape = {"vocab_size": 352, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "head_dim": 4}
    config = Qwen3Config(
        **shape,
        num_key_value_heads=2,
        num_hidden_layers=4,
        layer_types=kinds,
        use_sliding_window=True,
        sliding_window=3,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    assert copy_layers(str(tmp_path / "teacher"), None, "float32", 3, tmp_path / "copy") == [0, 2, 3]
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").config
    assert copied.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize("layers", [0, 6])
def test_a_number_of_layers_that_the_teacher_does_not_have_is_rejected(tmp_path, tokenizer, layers):
    teacher = save_teacher(tmp_path / "teacher", tokenizer)
    with pytest.raises(InputError, match=f"teacher: layers: expected 1 to 5, as many .* found {layers}"):
        copy_layers(teacher, None, "float32", layers, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_quantized_weights_are_rejected(tmp_path, tokenizer):
    teacher = save_teacher(tmp_path / "teacher", tokenizer)
    path = tmp_path / "teacher/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="expected weights that are not quantized, found gptq"):
        copy_layers(teacher, None, "float32", 2, tmp_path / "copy")


def test_layers_whose_kind_depends_on_their_index_are_rejected(tmp_path, tokenizer):
    """Every second layer of this mixture of experts is dense; its configuration has a step, not a list."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    shape = {"vocab_size": 352, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    config = Qwen2MoeConfig(
        **shape,
        **experts,
        shared_expert_intermediate_size=8,
        num_key_value_heads=2,
        num_hidden_layers=4,
        decoder_sparse_step=2,
    )
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(InputError, match="expected layers of one kind"):
        copy_layers(str(tmp_path / "teacher"), None, "float32", 3, tmp_path / "copy")
