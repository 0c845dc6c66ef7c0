"""Tokenizer files that cannot be loaded are errors that name the folder."""

import json

import pytest
from tiny import build_tokenizer, save_model

from distill.common.errors import InputError
from distill.models.load import load_tokenizer


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", []),
        ("tokenizer.json", {"version": "1.0"}),
        ("tokenizer_config.json", []),
        ("tokenizer_config.json", {"tokenizer_class": 5}),
    ],
    ids=str,
)
def test_broken_files_are_errors(tmp_path, name, content):
    model = save_model(tmp_path / "model", build_tokenizer())
    (tmp_path / "model" / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{model}: cannot load the tokenizer: "):
        load_tokenizer(model)


def test_an_empty_sentencepiece_file_is_an_error(tmp_path):
    model = save_model(tmp_path / "model", build_tokenizer())
    for path in (tmp_path / "model").glob("*token*"):
        path.unlink()
    (tmp_path / "model/tokenizer.model").touch()
    with pytest.raises(InputError, match=f"{model}: cannot load the tokenizer: "):
        load_tokenizer(model)
