"""The tokenizer of the demo's models: a small byte-level BPE in the format of Qwen2's, trained on the raw records."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from distill.common.errors import InputError, raise_problems
from distill.common.files import read_jsonl, replace_directory
from distill.records.raw_records import check_record, get_answer_text, get_texts

logger = logging.getLogger(__name__)


PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# System text, user text, answer ("" where the assistant's turn is a placeholder).
Chat = tuple[str, str, str]


def read_chats(paths: Sequence[Path]) -> Iterator[Chat]:
    """Yield the chats of raw files, GRPO or SFT.

    Raises:
        InputError: a file is not there, or a record is not well-formed; names file, line and field.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        for line, record in read_jsonl(path):
            raise_problems(check_record(record, path, line), "demo records")
            yield *get_texts(record), get_answer_text(record)


def train_tokenizer(texts: Iterable[str], size: int = 1024) -> Qwen2Tokenizer:
    """Train a byte-level BPE, digits single, as a Qwen2 tokenizer with ChatML template; eos is END, padding is PAD.

    It has `size` tokens with the three special ones, fewer where the texts have too few distinct words to merge.
    """
    bpe = Tokenizer(models.BPE())
    # The pieces within which Qwen2 merges; its class puts the same ones back whenever it loads the files.
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
    """Train a tokenizer on the chats of raw files and write its folder.

    Raises:
        InputError: as `read_chats`; or the files hold no record.
    """
    chats = list(read_chats(paths))
    if not chats:
        raise InputError(f"no record to train the tokenizer on in {', '.join(map(str, paths)) or 'no file'}")
    texts = (f"system\n{system}\nuser\n{user}\nassistant\n{answer}" for system, user, answer in chats)
    tokenizer = train_tokenizer(texts, size)
    with replace_directory(out) as folder:
        tokenizer.save_pretrained(folder)
    logger.info("tokenizer %s: %d tokens from %d records of %d files", out, len(tokenizer), len(chats), len(paths))
    return tokenizer


def load_demo_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """The tokenizer of a folder that `write_tokenizer` wrote, or of a model's folder.

    Raises:
        InputError: there is none.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: expected a tokenizer's folder, found no tokenizer.json in it")
    return Qwen2Tokenizer.from_pretrained(folder)
