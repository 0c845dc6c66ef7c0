"""Files that decide a model's answers: the rules and the fingerprint see the same ones."""

import pytest

from distill.model_files import list_model_files
from distill.models import fingerprint_files

DECIDING = [
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "vocab.json",
    "merges.txt",
]
DECIDING += [
    "merges.txt",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "adapter_model.bin",
    "pytorch_model.bin",
]
BESIDE = ["training_args.bin", "trainer_state.json", "README.md", "training_log.jsonl", "optimizer.pt", "scheduler.bin"]


@pytest.fixture
def folder(tmp_path):
    for name in DECIDING + BESIDE:
        (tmp_path / name).write_text("one")
    return tmp_path


@pytest.mark.parametrize("name", DECIDING)
def test_deciding_files_count(folder, name):
    before = fingerprint_files(str(folder))
    assert folder / name in list_model_files(folder)
    (folder / name).write_text("other")
    assert fingerprint_files(str(folder)) != before


@pytest.mark.parametrize("name", BESIDE)
def test_what_a_training_leaves_does_not(folder, name):
    before = fingerprint_files(str(folder))
    (folder / name).write_text("other")
    assert fingerprint_files(str(folder)) == before
