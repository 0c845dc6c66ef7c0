"""Folders with nothing but a SentencePiece model, held against SentencePiece itself."""

import io
import json

import pytest
import sentencepiece
from transformers import LlamaConfig

from distill.models.load import load_tokenizer

TEXTS = ["The bird sings in an old tree", "by the river, and nobody hears it", "me=12.5, profit=0.31: estimate"] * 3


NORMALIZATIONS = [("nmt_nfkc", True), ("identity", False), ("nfkc", False), ("nmt_nfkc_cf", True)]


@pytest.fixture(params=NORMALIZATIONS, ids=lambda pair: pair[0])
def folder(tmp_path, request):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        normalization_rule_name=request.param[0],
        remove_extra_whitespaces=request.param[1],
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    LlamaConfig(vocab_size=330, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "LlamaTokenizer"}])
def test_a_folder_with_only_a_sentencepiece_model_loads(folder, settings):
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("The bird sings", "it hears 漢🙂 by the river", "me=12.5", "a  b\n\nc\t", "ﬁ ＡＢ ½ STRASSE"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.encode(text)
        assert tokenizer.decode(ids) == original.decode(ids)
    assert tokenizer.eos_token == "</s>"
