"""Training examples of the demo's models: chats as token ids, held-out prompts, and batches of similar length."""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from distill.common.errors import InputError
from distill.demo.tokenizer import Chat
from distill.models.chat import ChatTemplate
from distill.records.raw_records import get_uid
from distill.records.splits import get_split

logger = logging.getLogger(__name__)

# Token ids of the prompt, including the header of the assistant's turn, and of the completion, including its end token.
Example = tuple[list[int], list[int]]
# Seed, validation fraction and test fraction of the workflow's splits.
Split = tuple[int, Fraction, Fraction]
SPLIT: Split = (42, Fraction(1, 10), Fraction(1, 10))


def encode_chats(
    tokenizer: Any, chats: Iterable[Chat], max_length: int, split: Split = SPLIT
) -> tuple[list[Example], list[Example]]:
    """Encode the chats that have an answer and at most `max_length` tokens as (training, held-out) examples.

    The held-out examples are those of the workflow's validation and test splits, so no model of the demo is evaluated
    on a prompt that it was trained on.

    Raises:
        InputError: there are no training examples or no held-out examples.
    """
    training: list[Example] = []
    held_out: list[Example] = []
    left_out = 0
    template = ChatTemplate(tokenizer)
    for system, user, answer in chats:
        example = template.encode_prompt(system, user), template.encode_completion(answer)
        if not answer or get_length(example) > max_length:
            left_out += 1
        elif get_split(get_uid(system, user), *split) != "train":
            held_out.append(example)
        else:
            training.append(example)
    logger.info(
        "%d records = %d for training + %d held out + %d left out (longer than %d tokens or without an answer)",
        len(training) + len(held_out) + left_out, len(training), len(held_out), left_out, max_length,
    )  # fmt: skip
    if not training or not held_out:
        raise InputError(
            f"expected at least one training and one held-out record, found {len(training)} and {len(held_out)}; "
            "pass more SFT records or a larger --max-length"
        )
    return training, held_out


def get_length(example: Example) -> int:
    """Number of tokens of prompt and completion."""
    return len(example[0]) + len(example[1])


def draw_batches(
    examples: Sequence[Example], batch_size: int, max_tokens: int, rng: random.Random
) -> Iterator[list[Example]]:
    """Yield batches of examples of similar length without end; each epoch uses every example once.

    A batch has at most `batch_size` examples and, including padding, at most `max_tokens` tokens. An example longer
    than that is a batch of its own.
    """
    while True:
        order = sorted(examples, key=lambda example: get_length(example) * rng.uniform(0.9, 1.1))
        batches: list[list[Example]] = [[]]
        longest = 0
        for example in order:
            longest = max(longest, get_length(example))
            size = len(batches[-1])
            if size and (size == batch_size or longest * (size + 1) > max_tokens):
                batches.append([])
                longest = get_length(example)
            batches[-1].append(example)
        rng.shuffle(batches)
        yield from batches
