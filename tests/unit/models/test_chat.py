"""Chat templates, the end of a turn, and the vocabulary that teacher and student share."""

import pytest
from tiny import SPECIAL, TEXTS, build_tokenizer

from distill.common.errors import InputError
from distill.models.chat import (
    encode_completion,
    encode_prompt,
    get_end_of_turn_id,
    render_prompt,
    shared_vocabulary_size,
)


def test_prompt_ends_where_the_answer_begins(tokenizer):
    text = render_prompt(tokenizer, "S", "U")
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encode_prompt(tokenizer, "S", "U")) == text


def test_completion_is_the_answer_with_the_end_of_its_turn(tokenizer):
    ids = encode_completion(tokenizer, "0.12")
    assert tokenizer.decode(ids) == "0.12<|im_end|>"


def test_end_of_turn_is_read_off_the_template_not_the_eos_token():
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert get_end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_end_of_turn_falls_back_to_eos_where_the_template_has_none():
    tokenizer = build_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert get_end_of_turn_id(tokenizer) == tokenizer.eos_token_id


def test_a_tokenizer_without_template_is_refused():
    tokenizer = build_tokenizer(template=None)
    with pytest.raises(InputError, match="chat template"):
        render_prompt(tokenizer, "S", "U")


def test_a_tokenizer_with_more_special_tokens_at_the_end_shares_the_rest(tokenizer):
    longer = build_tokenizer()
    longer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    assert len(longer) == len(tokenizer) + 2
    assert shared_vocabulary_size(longer, tokenizer) == len(tokenizer)
    assert shared_vocabulary_size(tokenizer, longer) == len(tokenizer)


def test_equal_sizes_prove_nothing(tokenizer):
    other = build_tokenizer(special=[SPECIAL[1], SPECIAL[0], SPECIAL[2]])
    assert len(other) == len(tokenizer)
    with pytest.raises(InputError, match="2 of .* token ids stand for different tokens, first 0"):
        shared_vocabulary_size(other, tokenizer)


def test_a_smaller_vocabulary_with_other_merges_is_refused(tokenizer):
    other = build_tokenizer(texts=["wholly other words here"] * 9 + TEXTS, size=300)
    with pytest.raises(InputError, match="seqkd"):
        shared_vocabulary_size(tokenizer, other)


def test_an_answer_that_was_cut_off_has_no_end(tokenizer):
    assert tokenizer.decode(encode_completion(tokenizer, "0.1", is_whole=False)) == "0.1"
