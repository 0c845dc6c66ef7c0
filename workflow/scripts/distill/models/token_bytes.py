"""The bytes that each token of a tokenizer stands for."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.models.vocabulary import vocabulary_size

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
PROBE = 'The answer (2 of 10) is: {"delta": -0.25}.\n'
CHARACTER_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}

TokenBytes = list[bytes | None]


def read_token_bytes(chat: ChatTemplate) -> TokenBytes:
    """Return the bytes of each token id, up to the smaller of the tokenizer's and the model's vocabulary.

    Ids without text, which are unused ids and control tokens, have None.

    Raises:
        InputError: the tokenizer is neither a byte-level one nor like SentencePiece, or the bytes of its tokens do not
            give the text of a probe.
    """
    tokenizer = chat.tokenizer
    kinds = set(list_decoders(tokenizer))
    if "ByteLevel" in kinds:
        spell = spell_byte_level
    elif kinds & {"Metaspace", "ByteFallback"}:
        spell = spell_sentencepiece
    else:
        found = ", ".join(sorted(kinds)) or "none"
        raise InputError(
            f"{chat.name}: expected a byte-level tokenizer, or one like SentencePiece, whose tokens stand for bytes, "
            f"found one with the decoder {found}"
        )
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    token_bytes: TokenBytes = [None] * min(vocabulary_size(tokenizer), chat.rows or vocabulary_size(tokenizer))
    for token, index in tokenizer.get_vocab().items():
        if index < len(token_bytes) and not chat.control_tokens.fullmatch(token):
            token_bytes[index] = added[index].encode() if index in added else spell(token)
    check_probe(chat, token_bytes)
    return token_bytes


def list_decoders(tokenizer: Any) -> Iterator[str]:
    """Yield the types of a tokenizer's decoders; none for a tokenizer without the library tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    for one in [decoder, *(decoder or {}).get("decoders", [])]:
        if one is not None:
            yield one["type"]


def spell_byte_level(token: str) -> bytes | None:
    """Return the bytes of a token in GPT-2's alphabet, which has a character for each byte; None for other tokens.

    >>> spell_byte_level("Ġcaf")
    b' caf'
    """
    found = [CHARACTER_BYTES.get(character) for character in token]
    return bytes(byte for byte in found if byte is not None) if None not in found else None


def spell_sentencepiece(token: str) -> bytes:
    """Return the bytes of a piece of SentencePiece, or of a token for a single byte.

    >>> spell_sentencepiece("▁caf"), spell_sentencepiece("<0x0A>")
    (b' caf', b'\\n')
    """
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def check_probe(chat: ChatTemplate, token_bytes: TokenBytes) -> None:
    """Check that the bytes of a text's tokens are those of the text.

    Raises:
        InputError: they are not.
    """
    found = join_bytes(chat.encode_after_prompt(PROBE), token_bytes)
    if found != PROBE.encode():
        raise InputError(
            f"{chat.name}: expected tokens whose bytes give the text {PROBE!r}, found {found!r}: the tokenizer changes "
            "texts, or has tokens of an unknown kind"
        )


def join_bytes(ids: Sequence[int], token_bytes: TokenBytes) -> bytes | None:
    """Return the bytes of consecutive tokens; None if one has none."""
    found = [token_bytes[index] if index < len(token_bytes) else None for index in ids]
    return b"".join(part for part in found if part) if all(found) else None
