"""Adapters: those that do not fit are refused, and merging keeps the logits."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import build_model, save_model
from transformers import AutoModelForCausalLM

from distill.common.errors import InputError
from distill.models import adapters
from distill.models.adapters import merge_adapter
from distill.models.load import load_model

CPU = torch.device("cpu")


def save_adapter(model, folder, **settings):
    """An adapter whose weights are not zero."""
    base = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, **settings)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tied(tmp_path, tokenizer):
    return save_model(tmp_path / "tied", tokenizer, tied=True, scale=4.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["embeddings", "head", "both", "a head of its own", "embeddings of its own"],
)
def test_a_merged_adapter_of_tied_embeddings_keeps_the_logits(tied, tmp_path, settings):
    adapter = save_adapter(tied, tmp_path / "adapter", **settings)
    if "modules_to_save" in settings:
        path = tmp_path / "adapter/adapter_model.safetensors"
        kept = {name: tensor * 1.5 if "lora" not in name else tensor for name, tensor in load_file(path).items()}
        save_file(kept, path, {"format": "pt"})
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), adapter).eval()
    merged = load_model(tied, CPU, torch.float32, adapter=adapter)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, unmerged(ids).logits, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, unmerged(ids).logits, rtol=1e-4, atol=1e-4)


def rename(path, old, new):
    save_file({name.replace(old, new): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_an_adapter_of_other_modules_is_refused(tmp_path, tokenizer):
    model = save_model(tmp_path / "model", tokenizer)
    adapter = save_adapter(model, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    rename(tmp_path / "adapter/adapter_model.safetensors", "model.layers", "model.language_model.layers")
    with pytest.raises(InputError, match=r"adapter does not fit.*8 are missing, such as .*q_proj.lora_A"):
        load_model(model, CPU, torch.float32, adapter=adapter)


def test_an_adapter_with_weights_of_unknown_modules_is_refused(tmp_path, tokenizer):
    """A checkpoint of a model with more layers."""
    small, large = (save_model(tmp_path / f"{n}", tokenizer, layers=n) for n in (2, 3))
    adapter = save_adapter(large, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"2 are unknown to the model, such as .*layers.2.self_attn.q_proj"):
        load_model(small, CPU, torch.float32, adapter=adapter)


def test_an_adapter_without_some_of_its_weights_is_refused(tmp_path, tokenizer):
    model = save_model(tmp_path / "model", tokenizer)
    adapter = save_adapter(model, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"target_modules": [*settings["target_modules"], "o_proj"]}))
    with pytest.raises(InputError, match=r"4 are missing, such as .*o_proj.lora_A"):
        load_model(model, CPU, torch.float32, adapter=adapter)


def test_a_merge_that_changes_the_logits_is_refused(monkeypatch):
    """Merging into tied weights, as without `untie_adapted_head`."""
    monkeypatch.setattr(adapters, "untie_adapted_head", lambda model: None)
    model = get_peft_model(
        build_model(tied=True, scale=4.0), LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    )
    with pytest.raises(InputError, match="cannot be merged: expected the same logits before and after"):
        merge_adapter(model, "an adapter")


def test_an_activated_adapter_is_refused(tied, tmp_path):
    adapter = save_adapter(tied, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alora_invocation_tokens": [5, 6]}))
    with pytest.raises(InputError, match=r"expected an adapter that can be merged, found an activated LoRA \(aLoRA\)"):
        load_model(tied, CPU, torch.float32, adapter=adapter)


def test_an_adapter_in_the_folder_of_a_model_is_refused(tied, tmp_path):
    """transformers would load it unasked, and the model would be a PEFT model."""
    save_adapter(tied, tmp_path / "tied", target_modules=["q_proj"])
    with pytest.raises(InputError, match="found adapter_config.json beside config.json"):
        load_model(tied, CPU, torch.float32)
