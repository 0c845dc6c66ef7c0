"""The tokenizer of the demo's models: a small byte-level BPE in Qwen2's format, trained on the raw records."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from distill.common.errors import InputError, format_problem, raise_problems
from distill.common.files import read_jsonl, replace_directory
from distill.records.conversations import pick_context
from distill.records.raw_records import check_record, get_answer_text, get_fields, get_texts

logger = logging.getLogger(__name__)


PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# System prompt, user prompt, answer ("" if the assistant's turn is a placeholder).
Chat = tuple[str, str, str]


def read_chats(paths: Sequence[Path]) -> Iterator[Chat]:
    """Yield the chats of raw GRPO and SFT files.

    Raises:
        InputError: a file does not exist, or a record is malformed; names file, line and field.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        for line, record in read_jsonl(path):
            raise_problems(check_record(record, path, line), "demo records")
            if pick_context(get_fields(record)):
                expected = "a single user text without tools, since the demo's models learn no conversations"
                raise InputError(format_problem(path, line, "messages", expected, record["messages"]))
            yield *get_texts(record), get_answer_text(record)


def train_tokenizer(texts: Iterable[str], size: int = 1024) -> Qwen2Tokenizer:
    """Train a byte-level BPE with single digits and a ChatML template, as a Qwen2 tokenizer.

    Args:
        texts: training texts.
        size: size of the vocabulary, including three special tokens. It is smaller if the texts have too few words.
    """
    bpe = Tokenizer(models.BPE())
    # Qwen2Tokenizer restores these two whenever it loads the files.
    qwen = Qwen2Tokenizer().backend_tokenizer
    bpe.normalizer, bpe.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size - 3, initial_alphabet=alphabet, show_progress=False)
    )
    trained = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in trained["merges"]]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=merges,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        extra_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
    )


def write_tokenizer(paths: Sequence[Path], out: Path, size: int = 1024) -> Qwen2Tokenizer:
    """Train a tokenizer on the chats of raw files and write it to a folder.

    Raises:
        InputError: see `read_chats`; or the files have no records.
    """
    chats = list(read_chats(paths))
    if not chats:
        files = ", ".join(map(str, paths)) or "--sft, --grpo"
        raise InputError(f"{files}: expected records to train the tokenizer on, found none")
    texts = (f"system\n{system}\nuser\n{user}\nassistant\n{answer}" for system, user, answer in chats)
    tokenizer = train_tokenizer(texts, size)
    with replace_directory(out) as folder:
        tokenizer.save_pretrained(folder)
    logger.info("%s: %d tokens, trained on %d records from %d files", out, len(tokenizer), len(chats), len(paths))
    return tokenizer


def load_demo_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """Load the tokenizer of a folder from `write_tokenizer`, or of one of the demo's models.

    Raises:
        InputError: the folder has no tokenizer.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: expected a tokenizer folder, found no tokenizer.json in it")
    return Qwen2Tokenizer.from_pretrained(folder)
