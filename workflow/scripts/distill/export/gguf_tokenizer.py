"""A byte-level BPE tokenizer as the metadata of a GGUF file."""

import json
from pathlib import Path
from typing import Any

import gguf
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)

from distill.common.errors import InputError
from distill.models.chat import get_end_of_turn_id

# llama.cpp's names of how text is cut into pieces before merging, by the expression that cuts.
SPLITS = {GGUF_PRE_TOKENIZER_SPLITS[name]: name for name in ("qwen2", "llama-bpe", "qwen35", "gpt-4o", "tekken")}


def find_pre_tokenizer(tokenizer: Any) -> str:
    """llama.cpp's name of the way in which a tokenizer cuts text into pieces before it merges bytes.

    Raises:
        InputError: no byte-level BPE, or a way that is not known here.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    described = backend["pre_tokenizer"] or {}
    parts = described.get("pretokenizers", [described])
    kinds = [part.get("type") for part in parts]
    if backend["model"]["type"] == "BPE" and kinds and kinds[-1] == "ByteLevel" and not parts[-1]["add_prefix_space"]:
        cuts_words = parts[-1]["use_regex"]
        if kinds == ["Split", "ByteLevel"] and not cuts_words:
            pattern = parts[0]["pattern"].get("Regex")
            if pattern in SPLITS:
                return SPLITS[pattern]
        elif kinds == ["ByteLevel"] and cuts_words:
            return "gpt-2"
        elif kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and cuts_words:
            return "smollm"
    raise InputError(
        f"{tokenizer.name_or_path}: variant gguf: expected a byte-level BPE tokenizer that cuts text as one of "
        f"{', '.join([*SPLITS.values(), 'gpt-2', 'smollm'])} does, found {backend['model']['type']} with {described}; "
        "leave gguf out"
    )


def list_tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """(tokens, kinds) by id, as many as the embedding has rows: those beyond the vocabulary stand for nothing."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens: list[str] = []
    kinds: list[int] = []
    for index in range(rows):
        if index in added:
            kinds.append(gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED)
        tokens.append(by_id.get(index, f"[PAD{index}]"))
    return tokens, kinds


def list_merges(tokenizer: Any) -> list[str]:
    """The merges, the first first, as `left right`."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def add_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Vocabulary, merges, special tokens and chat template.

    Raises:
        InputError: as `find_pre_tokenizer`.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(find_pre_tokenizer(tokenizer))
    tokens, kinds = list_tokens(tokenizer, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list_merges(tokenizer))
    end = get_end_of_turn_id(tokenizer)
    # llama.cpp ends an answer at either.
    writer.add_eos_token_id(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else end)
    writer.add_eot_token_id(end)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def check_written_tokenizer(path: Path, tokenizer: Any, text: str) -> None:
    """Read a file's tokenizer again, as transformers builds it of the file alone, and have it cut a text.

    transformers does not know how `smollm` cuts digits: there vocabulary and merges alone are compared.

    Raises:
        InputError: other tokens.
    """
    architecture, written, settings = get_gguf_tokenizer(str(path))
    same = written["merges"] == list_merges(tokenizer) and settings["chat_template"] == tokenizer.chat_template
    same = same and all(written["tokens"][index] == token for token, index in tokenizer.get_vocab().items())
    if same and written["pre_tokenizer_type"] != "smollm":
        backend, _ = convert_gguf_tokenizer(architecture, written)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        same = backend.encode(text, add_special_tokens=False).ids == ids
    if not same:
        raise InputError(f"{path}: expected the tokens of {tokenizer.name_or_path}, found others")
