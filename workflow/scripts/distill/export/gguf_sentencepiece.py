"""SentencePiece-like tokenizers, as Gemma's, in the metadata of a GGUF file.

transformers merges the pair of adjacent pieces that comes first in a list of merges. llama.cpp has no such list: it
joins the two pieces whose union is the token with the highest score. Both split any text alike if the merges that give
a token follow each other and cover every way to split it, which is checked here. The score of a token is then the
negative place of its first merge.
"""

import re
from collections.abc import Sequence
from typing import Any

import gguf

BYTE = re.compile("<0x[0-9A-F]{2}>")
SPACE = "▁"  # stands for a space
ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# It finds no space, as the normalizer has replaced them all.
NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def is_sentencepiece(backend: dict[str, Any]) -> bool:
    """Whether a tokenizer.json splits text like llama.cpp's tokenizer `llama` without a space before the text."""
    model = backend["model"]
    plain = not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    is_bpe = model["type"] == "BPE" and model.get("byte_fallback") and not model.get("ignore_merges")
    return bool(is_bpe and plain and backend["normalizer"] == ESCAPE and backend["pre_tokenizer"] in (None, NO_SPLIT))


def find_problem(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], added: set[str]) -> str | None:
    """What llama.cpp would split differently; None if it splits every text alike.

    Args:
        vocabulary: token to id.
        merges: pairs of pieces in order of priority.
        added: tokens that both find in the text before they split it; those with a space are found by name only.
    """
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]:
        return f"no token {missing[0]}"
    listed, last = set(merges), ""
    seen: set[str] = set()
    for left, right in merges:
        if left + right != last and left + right in seen:
            return f"the merges of {left + right!r} do not follow each other"
        last = left + right
        seen.add(last)
    for token in vocabulary.keys() - {token for token in added if SPACE not in token}:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in listed and pair[0] in vocabulary and pair[1] in vocabulary:
                return f"no merge of {pair[0]!r} and {pair[1]!r}"
    return None


def score_tokens(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores of the tokens: the higher, the earlier a token is merged."""
    places: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        places.setdefault(left + right, place)
    return [-float(places.get(token, len(merges))) for token in tokens]


def list_kinds(tokens: Sequence[str], kinds: Sequence[int], unknown: str | None) -> list[int]:
    """The tokens' types, with those of bytes and of the unknown token set."""
    special = {unknown: gguf.TokenType.UNKNOWN}
    return [
        gguf.TokenType.BYTE if BYTE.fullmatch(token) else special.get(token, kind)
        for token, kind in zip(tokens, kinds, strict=True)
    ]
