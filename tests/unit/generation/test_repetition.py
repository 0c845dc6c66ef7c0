"""Tokens of any script and their repeated n-grams."""

from distill.generation.repetition import count_repeated, split_tokens


def test_repetition_by_hand():
    assert count_repeated(list("abcdabcd")) == (1, 5)
    assert count_repeated(list("abc")) == (0, 0)
    assert split_tokens("我们 OK, 3%") == ["我", "们", "ok", "3"]
