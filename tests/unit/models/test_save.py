"""Saved models: one file of weights, and stop tokens that end a turn in every program."""

import json

import pytest
from tiny import CHATML, build_model, build_tokenizer, count_generated, save_base_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from distill.common.errors import InputError
from distill.models.save import save_model, set_stop_tokens, write_stop_tokens

TEXT_END, TURN_END = 0, 2  # <|endoftext|>, <|im_end|>
WITH_EOS = CHATML.replace("<|im_end|>", "{{ '<|im_end|>' if m['role'] == 'assistant' else eos_token }}")


@pytest.mark.parametrize(
    ("named", "stops"),
    [
        (TEXT_END, [TURN_END, TEXT_END]),
        ([TEXT_END, 7], [TURN_END, TEXT_END, 7]),
        (None, TURN_END),
        (TURN_END, TURN_END),
        ([TEXT_END, TURN_END], [TEXT_END, TURN_END]),
    ],
)
def test_the_end_of_a_turn_is_a_stop_token(named, stops):
    generation, tokenizer = GenerationConfig(eos_token_id=named), build_tokenizer()
    assert set_stop_tokens(generation, tokenizer) == (named != stops)
    assert generation.eos_token_id == stops
    assert not set_stop_tokens(generation, tokenizer)


@pytest.mark.parametrize(
    ("template", "eos"),
    [
        (CHATML, "<|im_end|>"),
        (WITH_EOS, "<|endoftext|>"),  # another EOS token would change its prompts
        (CHATML.replace("<|im_end|>", "#"), "<|endoftext|>"),  # ordinary text contains it
        (None, "<|endoftext|>"),
    ],
    ids=["ChatML", "template with eos_token", "ordinary token", "no template"],
)
def test_the_end_of_a_turn_becomes_the_tokenizers_eos_token(tmp_path, template, eos):
    tokenizer = build_tokenizer(template=template, eos="<|endoftext|>")
    text = "me=12.5 # profit"
    before = tokenizer(text)["input_ids"]
    assert set_stop_tokens(GenerationConfig(eos_token_id=TEXT_END), tokenizer) == ("<|im_end|>" in str(template))
    tokenizer.save_pretrained(tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path)
    assert (written.eos_token, written.pad_token) == (eos, "<|endoftext|>")
    assert written(text)["input_ids"] == before


def test_a_folder_is_changed_only_if_it_does_not_stop(tmp_path):
    folder = tmp_path / "base"
    save_base_model(folder)
    assert count_generated(folder, TURN_END) == 5
    write_stop_tokens(folder)
    assert [count_generated(folder, token) for token in (TURN_END, TEXT_END)] == [1, 1]
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == TURN_END
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [TURN_END, TEXT_END]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_stop_tokens(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def save_in_shards(monkeypatch, size="20KB"):
    """Save models in files of at most `size` by default, as transformers does with 50 GB."""
    save = PreTrainedModel.save_pretrained

    def sharded(self, *args, **settings):
        save(self, *args, **{"max_shard_size": size} | settings)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", sharded)


def test_a_large_model_is_saved_as_one_file(tmp_path, monkeypatch):
    save_in_shards(monkeypatch)
    build_model().save_pretrained(tmp_path / "shards")
    assert not (tmp_path / "shards/model.safetensors").exists()
    (tmp_path / "saved").mkdir()
    save_model(build_model(), build_tokenizer(), tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_file_that_was_not_written_is_named(tmp_path, monkeypatch):
    model = build_model()
    monkeypatch.setattr(PreTrainedModel, "can_generate", lambda self: False)
    with pytest.raises(InputError, match="expected transformers to write generation_config.json, found no such file"):
        save_model(model, build_tokenizer(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"num_beams": 1, "early_stopping": True, "length_penalty": 0.5}, {"early_stopping": None}),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
    ],
)
def test_contradictory_generation_settings_do_not_end_a_training(tmp_path, settings, expected):
    """transformers reads such a file, but refuses to write it."""
    folder = tmp_path / "base"
    save_base_model(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (tmp_path / "out").mkdir()
    save_model(model, AutoTokenizer.from_pretrained(folder), tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    default = GenerationConfig()
    assert {name: getattr(written, name) for name in expected} == {
        name: getattr(default, name) if value is None else value for name, value in expected.items()
    }
