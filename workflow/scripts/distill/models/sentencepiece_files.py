"""Tokenizers of folders that hold a SentencePiece model, `tokenizer.model`, and no tokenizer.json."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers
from transformers import LlamaTokenizer

from distill.common.errors import InputError

# Words, runs of spaces, line feeds and tabs, and characters that a normalization replaces.
PROBES = ("The bird sings", "The  bird   sings ", "The bird\nsings\t.", "\ufb01 \uff21\uff22 \u00bd")


def check_sentencepiece(model: str, tokenizer: Any) -> Any:
    """Return the tokenizer, or the plain SentencePiece tokenizer where only that splits text as the file says.

    Without tokenizer_config.json, transformers leaves out the space that SentencePiece adds before a text, so that the
    first token of every text is another one. The plain tokenizer leaves out the normalization of the file.

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
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError:  # the file is in the format of tiktoken, which transformers reads, too
        return tokenizer
    pieces = {text: processor.encode(text) for text in PROBES}
    if not find_differences(tokenizer, pieces):
        return tokenizer
    plain = LlamaTokenizer.from_pretrained(model)
    add_normalization(plain, path)
    for text in find_differences(plain, pieces):
        expected, found = (plain.convert_ids_to_tokens(ids) for ids in (pieces[text], encode(plain, text)))
        raise InputError(f"{path}: expected {text!r} to be split into {expected}, as SentencePiece does, found {found}")
    return plain


def add_normalization(tokenizer: Any, path: Path) -> None:
    """Make a tokenizer normalize text as the SentencePiece file says: replaced characters, no further spaces."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf builds the class
    proto.ParseFromString(path.read_bytes())
    parts: list[Any] = []
    if proto.normalizer_spec.precompiled_charsmap:
        parts.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        parts += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend = tokenizer.backend_tokenizer
    if parts:
        backend.normalizer = normalizers.Sequence([*parts, *([backend.normalizer] if backend.normalizer else [])])


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def find_differences(tokenizer: Any, pieces: dict[str, list[int]]) -> list[str]:
    """Return the texts whose token ids are not those of SentencePiece."""
    return [text for text, expected in pieces.items() if encode(tokenizer, text) != expected]
