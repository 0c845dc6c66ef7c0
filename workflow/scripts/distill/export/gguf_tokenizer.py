"""Write a tokenizer, byte-level BPE or SentencePiece-like, to the metadata of a GGUF file."""

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)

from distill.common.errors import InputError
from distill.export.gguf_layouts import unsupported
from distill.export.gguf_sentencepiece import find_problem, is_sentencepiece, list_kinds, score_tokens
from distill.models.chat import get_end_of_turn_id

# Regular expression that splits text before merging, to llama.cpp's name of the pre-tokenizer.
SPLITS = {GGUF_PRE_TOKENIZER_SPLITS[name]: name for name in ("qwen2", "llama-bpe", "qwen35", "gpt-4o", "tekken")}
# Pre-tokenizers with which llama.cpp takes a piece that is a token as it is, without merging its bytes.
WHOLE_PIECES = ("llama-bpe", "tekken")


def find_pre_tokenizer(tokenizer: Any) -> str:
    """llama.cpp's name of a tokenizer's pre-tokenizer, which splits text into pieces before bytes are merged.

    Raises:
        InputError: the tokenizer is not a byte-level BPE, or its pre-tokenizer, its normalizer or the use of its merges
            is not supported.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    pre_tokenizer = backend["pre_tokenizer"] or {}
    is_plain = backend["model"]["type"] == "BPE" and backend["normalizer"] in (None, {"type": "NFC"})
    name = name_pre_tokenizer(pre_tokenizer) if is_plain else None
    if name is None:
        supported = ", ".join([*SPLITS.values(), "gpt-2", "smollm"])
        raise unsupported(
            tokenizer.name_or_path,
            f"expected a byte-level BPE tokenizer with one of the pre-tokenizers {supported}, or one like Gemma's, "
            f"found {backend['model']['type']} with {pre_tokenizer} and the normalizer {backend['normalizer']}",
        )
    if bool(backend["model"].get("ignore_merges")) != (name in WHOLE_PIECES) and (token := find_unmerged(backend)):
        problem = f"expected merges that give every token, since llama.cpp uses them differently with {name}"
        raise unsupported(tokenizer.name_or_path, f"{problem}, found none for {token!r}")
    return name


def find_unmerged(backend: dict[str, Any]) -> str | None:
    """A token that the merges do not give for its own text; None if there is none."""
    merging = Tokenizer.from_str(json.dumps(backend | {"model": backend["model"] | {"ignore_merges": False}})).model
    added = {token["content"] for token in backend["added_tokens"]}
    tokens = (token for token in backend["model"]["vocab"] if token not in added)
    return next((token for token in tokens if [part.value for part in merging.tokenize(token)] != [token]), None)


def name_pre_tokenizer(pre_tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name of a pre-tokenizer given as in tokenizer.json; None if it has no such name."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [part.get("type") for part in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1]["add_prefix_space"]:
        return None
    splits_words = parts[-1]["use_regex"]
    if kinds == ["Split", "ByteLevel"] and not splits_words:
        return SPLITS.get(parts[0]["pattern"].get("Regex"))
    if kinds == ["ByteLevel"] and splits_words:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and splits_words:
        return "smollm"
    return None


def list_tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """(tokens, types) of all ids below `rows`, the number of embedding rows; ids without a token are unused."""
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


def list_pairs(tokenizer: Any) -> list[tuple[str, str]]:
    """The merges in order of priority, as pairs."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    return [(left, right) for left, right in pairs]


def list_merges(tokenizer: Any) -> list[str]:
    """The merges in order of priority, as `left right`."""
    return [" ".join(pair) for pair in list_pairs(tokenizer)]


def add_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Add vocabulary, merges, special tokens and chat template to the metadata.

    Raises:
        InputError: llama.cpp has no such tokenizer; see `find_pre_tokenizer` and `add_sentencepiece`.
    """
    tokens, kinds = list_tokens(tokenizer, rows)
    if is_sentencepiece(json.loads(tokenizer.backend_tokenizer.to_str())):
        kinds = add_sentencepiece(writer, tokenizer, tokens, kinds)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(find_pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list_merges(tokenizer))
    end, eos = get_end_of_turn_id(tokenizer), tokenizer.eos_token_id
    # llama.cpp stops at either of these two, transformers at the first.
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end if eos is None else eos)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id)
    writer.add_chat_template(tokenizer.get_chat_template())


def add_sentencepiece(writer: Any, tokenizer: Any, tokens: list[str], kinds: list[int]) -> list[int]:
    """Add the scores of a SentencePiece-like tokenizer to the metadata; return the types of its tokens.

    Raises:
        InputError: llama.cpp would split some texts differently.
    """
    merges = list_pairs(tokenizer)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if problem := find_problem(tokenizer.get_vocab(), merges, added):
        expected = "expected a SentencePiece-like tokenizer that llama.cpp reproduces"
        raise unsupported(tokenizer.name_or_path, f"{expected}, found {problem}")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(score_tokens(tokens, merges))
    writer.add_add_space_prefix(False)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    return list_kinds(tokens, kinds, tokenizer.unk_token)


def check_written_tokenizer(path: Path, tokenizer: Any, text: str) -> None:
    """Compare the tokenizer in a GGUF file with the original one, as transformers reads it from the file alone.

    Args:
        path: the GGUF file.
        tokenizer: the original tokenizer.
        text: text that both must split into the same tokens. Not compared for `smollm`, whose rule for digits
            transformers does not apply.

    Raises:
        InputError: vocabulary, merges, chat template or tokens of the text differ.
    """
    architecture, written, settings = get_gguf_tokenizer(str(path))
    is_same = written["merges"] == list_merges(tokenizer) and settings["chat_template"] == tokenizer.get_chat_template()
    is_same = is_same and all(
        written["tokens"][index] == token
        for token, index in tokenizer.get_vocab().items()
        if index < len(written["tokens"])  # the model has no embeddings of the others
    )
    if is_same and written["pre_tokenizer_type"] != "smollm":
        backend, _ = convert_gguf_tokenizer(architecture, written)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        is_same = backend.encode(text, add_special_tokens=False).ids == ids
    if not is_same:
        raise InputError(f"{path}: expected the tokenizer of {tokenizer.name_or_path}, found a different one")
