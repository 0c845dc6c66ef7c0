"""Tokenizers of folders that hold a SentencePiece model, `tokenizer.model`, and no tokenizer.json."""

from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

from distill.common.errors import InputError

PROBE = "The bird sings"


def check_sentencepiece(model: str, tokenizer: Any) -> Any:
    """Return the tokenizer, or the plain SentencePiece tokenizer where only that splits text as the file says.

    Without tokenizer_config.json, transformers leaves out the space that SentencePiece adds before a text, so that the
    first token of every text is another one.

    Args:
        model: hub id or local folder.
        tokenizer: the tokenizer as loaded from it.

    Raises:
        InputError: neither tokenizer splits a text as SentencePiece does.
    """
    path = Path(model) / "tokenizer.model"
    if not path.is_file() or (path.parent / "tokenizer.json").is_file():
        return tokenizer
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(PROBE, out_type=str)
    except RuntimeError:  # the file is in the format of tiktoken, which transformers reads, too
        return tokenizer
    if tokenizer.tokenize(PROBE) == pieces:
        return tokenizer
    plain = LlamaTokenizer.from_pretrained(model)
    if (found := plain.tokenize(PROBE)) != pieces:
        raise InputError(f"{path}: expected {PROBE!r} to be split into {pieces}, as SentencePiece does, found {found}")
    return plain
