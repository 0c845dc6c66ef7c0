"""Repeated n-grams of an answer, in any script."""

import unicodedata
from collections.abc import Sequence

import regex

# Scripts without spaces between words: every Chinese character or Japanese kana is a token.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Combining marks, such as vowel signs, and the joiners U+200C and U+200D belong to the letter before them.
MARKS = r"[\p{M}\u200c\u200d]*"
TOKEN = regex.compile(rf"[{UNSPACED}]{MARKS}|(?:(?![{UNSPACED}])[\p{{L}}\p{{N}}]{MARKS})+")
NGRAM = 4  # tokens of an n-gram whose repetition counts


def split_tokens(text: str) -> list[str]:
    """Lower-case words and numbers of a text in any script, with their combining marks and in the normal form NFC.

    Each Chinese character or kana is a token. Other scripts are split at spaces and punctuation only, also those that
    have no spaces between words, such as Thai.
    """
    return TOKEN.findall(unicodedata.normalize("NFC", text.lower()))


def count_repeated(tokens: Sequence[str], n: int = NGRAM) -> tuple[int, int]:
    """(n-grams that occurred earlier in the text, all n-grams)."""
    grams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)
