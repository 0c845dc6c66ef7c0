"""The ids that a tokenizer uses, and the vocabulary that teacher and student share."""

import pytest
from tiny import SPECIAL, TEXTS, build_tokenizer, save_model
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.common.errors import InputError
from distill.models.load import load_chat, load_tokenizer
from distill.models.vocabulary import find_unused_ids, shared_vocabulary_size, vocabulary_size


def test_a_tokenizer_with_more_special_tokens_at_the_end_shares_the_rest(tokenizer):
    longer = build_tokenizer()
    longer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    assert len(longer) == len(tokenizer) + 2
    assert shared_vocabulary_size(longer, tokenizer) == len(tokenizer)
    assert shared_vocabulary_size(tokenizer, longer) == len(tokenizer)


def test_vocabularies_of_equal_size_with_other_ids_are_rejected(tokenizer):
    other = build_tokenizer(special=[SPECIAL[1], SPECIAL[0], SPECIAL[2]])
    assert len(other) == len(tokenizer)
    with pytest.raises(InputError, match="2 of .* token ids stand for different tokens, first 0"):
        shared_vocabulary_size(other, tokenizer)


def test_a_smaller_vocabulary_with_other_merges_is_rejected(tokenizer):
    other = build_tokenizer(texts=["wholly other words here"] * 9 + TEXTS, size=300)
    with pytest.raises(InputError, match="seqkd"):
        shared_vocabulary_size(tokenizer, other)


def test_the_shared_vocabulary_ends_with_the_rows_of_the_smaller_model(tokenizer):
    assert shared_vocabulary_size(tokenizer, tokenizer, 300) == 300
    assert shared_vocabulary_size(tokenizer, tokenizer, 4096) == len(tokenizer)


def test_a_model_tells_its_rows(tmp_path, tokenizer):
    folder = save_model(tmp_path, tokenizer, vocabulary=300)
    assert load_chat(folder).rows == 300


def test_without_padding_and_eos_a_tokenizer_pads_with_the_end_of_turn(tmp_path, monkeypatch):
    bare = build_tokenizer()
    bare.eos_token = bare.pad_token = None
    folder = save_model(tmp_path, build_tokenizer())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda model: bare)
    assert load_tokenizer(folder).pad_token == "<|im_end|>"


def test_ids_with_holes():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 5, "d": 7}, unk_token="a"))
    )
    assert len(tokenizer) == 4
    assert vocabulary_size(tokenizer) == 8
    assert find_unused_ids(tokenizer) == [2, 3, 4, 6]
