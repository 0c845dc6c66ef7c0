"""Tiny models for the demo: Qwen2 models trained from scratch on SFT records, and LoRA adapters over one.

They are ordinary Hugging Face folders, so that the workflow uses them exactly as it uses Qwen.
"""

import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from distill.common.errors import InputError
from distill.common.files import replace_directory
from distill.demo.tokenizer import Chat
from distill.models.adapters import write_adapter
from distill.models.chat import encode_completion, encode_prompt
from distill.records.answer_format import parse_answer
from distill.records.raw_records import get_uid
from distill.records.splits import get_split

logger = logging.getLogger(__name__)

KEY = "holding_log_delta"


# So narrow a model learns to copy numbers late with the usual 0.02: 5 % of the answers right after 400 steps of 16
# (rate 5e-3), with 0.08 87 % after 200 (rate 3e-3).
INITIALIZER_RANGE = 0.08
MOST_CHECKED = 64
IGNORED = -100


# Token ids of a record's prompt (with the header of the assistant's turn) and of its completion (with its end).
Example = tuple[list[int], list[int]]


# Seed, validation and test fraction of the workflow's splits.
Split = tuple[int, Fraction, Fraction]
SPLIT = (42, Fraction(1, 10), Fraction(1, 10))


def encode_chats(
    tokenizer: Any, chats: Iterable[Chat], max_length: int, split: Split = SPLIT
) -> tuple[list[Example], list[Example]]:
    """Encode the chats that have an answer and fit `max_length` tokens, as (training, held-out) examples.

    Held out is what the workflow's own splits hold out for validation and test, so that no model of the demo is
    evaluated on a prompt that it was trained on.

    Args:
        split: seed, validation and test fraction of the splits.

    Raises:
        InputError: nothing is left to train on or to hold out.
    """
    training: list[Example] = []
    held_out: list[Example] = []
    left_out = 0
    for system, user, answer in chats:
        example = encode_prompt(tokenizer, system, user), encode_completion(tokenizer, answer)
        if not answer or len(example[0]) + len(example[1]) > max_length:
            left_out += 1
        elif get_split(get_uid(system, user), *split) != "train":
            held_out.append(example)
        else:
            training.append(example)
    logger.info(
        "%d records = %d to train on + %d held out + %d left out (longer than %d tokens or without an answer)",
        len(training) + len(held_out) + left_out, len(training), len(held_out), left_out, max_length,
    )  # fmt: skip
    if not training or not held_out:
        raise InputError(
            f"expected records to train on and to hold out, found {len(training)} and {len(held_out)}: "
            "give more SFT records or a larger --max-length"
        )
    return training, held_out


def draw_batches(
    examples: Sequence[Example], batch_size: int, max_tokens: int, rng: random.Random
) -> Iterator[list[Example]]:
    """Yield batches for ever, of at most `batch_size` records and `max_tokens` tokens with padding (or one record).

    Records of similar length share a batch, so that little of it is padding; every pass takes each record once.
    """
    while True:
        order = sorted(examples, key=lambda example: (len(example[0]) + len(example[1])) * rng.uniform(0.9, 1.1))
        batches: list[list[Example]] = [[]]
        longest = 0
        for example in order:
            longest = max(longest, len(example[0]) + len(example[1]))
            if batches[-1] and (len(batches[-1]) == batch_size or longest * (len(batches[-1]) + 1) > max_tokens):
                batches.append([])
                longest = len(example[0]) + len(example[1])
            batches[-1].append(example)
        rng.shuffle(batches)
        yield from batches


def completion_loss(model: nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy (nats) over the completion tokens of a batch, padded on the right.

    Causal attention never looks to the right, so that the padding (id 0) needs no mask.
    """
    length = max(len(prompt) + len(completion) for prompt, completion in batch)
    ids = torch.tensor([[*p, *c, *[0] * (length - len(p) - len(c))] for p, c in batch])
    labels = torch.tensor([[*[IGNORED] * len(p), *c, *[IGNORED] * (length - len(p) - len(c))] for p, c in batch])
    logits = model(input_ids=ids).logits[:, :-1]
    targets = labels[:, 1:]
    counted = targets != IGNORED
    return F.cross_entropy(logits[counted], targets[counted])


def train_round(model: nn.Module, batches: Iterator[list[Example]], steps: int, learning_rate: float) -> None:
    """Take `steps` AdamW steps: linear warm-up over a tenth of them, then a cosine down to 5 % of the rate."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warm_up = max(1, steps // 10)
    model.train()
    started = time.perf_counter()
    for step in range(1, steps + 1):
        rate = min(1.0, step / warm_up) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        loss = completion_loss(model, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps:
            logger.info("step %d/%d: loss %.3f (%.0f s)", step, steps, loss.item(), time.perf_counter() - started)


def keeps_format(text: str) -> bool:
    """Whether an answer is `<think>…</think><answer>{…}</answer>` with a finite number under KEY."""
    answer = parse_answer(text, KEY)
    return answer.problem is None and answer.think is not None


@torch.inference_mode()
def measure_coverage(model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int = 32) -> float:
    """The share (0 to 1) of the examples' prompts that the model answers greedily in the answer format."""
    model.eval()
    kept = 0
    longest = max(len(completion) for _, completion in examples)
    for start in range(0, len(examples), batch_size):
        prompts = [prompt for prompt, _ in examples[start : start + batch_size]]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=longest + 16)
        answers = output[:, inputs["input_ids"].shape[1] :]
        kept += sum(map(keeps_format, tokenizer.batch_decode(answers, skip_special_tokens=True)))
    return kept / len(examples)


def build_model(
    tokenizer: Any, layers: int, hidden: int, heads: int, intermediate: int, vocab_size: int, seed: int
) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights; `vocab_size` may be larger than the tokenizer's, as in real Qwen models.

    Raises:
        InputError: the vocabulary does not hold the tokenizer's tokens, or heads do not divide the hidden size.
    """
    if vocab_size < len(tokenizer):
        raise InputError(f"--vocab-size: expected at least the tokenizer's {len(tokenizer)} tokens, found {vocab_size}")
    if hidden % (2 * heads):
        raise InputError(f"--hidden: expected a multiple of twice the {heads} heads, found {hidden}")
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model


def train_to_format(
    model: Any,
    tokenizer: Any,
    batches: Iterator[list[Example]],
    held_out: Sequence[Example],
    steps: int,
    learning_rate: float,
    min_coverage: float | None = None,
    max_rounds: int = 3,
) -> float:
    """Train for `steps`, then check the answer format on held-out prompts; returns its coverage (0 to 1).

    With `min_coverage` such rounds follow each other until the coverage is reached.

    Raises:
        InputError: `max_rounds` rounds did not reach `min_coverage`.
    """
    checked = held_out[:MOST_CHECKED]
    for number in range(1, max_rounds + 1):
        train_round(model, batches, steps, learning_rate)
        coverage = measure_coverage(model, tokenizer, checked)
        with torch.inference_mode():
            losses = [completion_loss(model, [example]).item() for example in checked]
        logger.info(
            "round %d: %.1f %% of %d held-out prompts answered in the format, perplexity %.3f",
            number, 100 * coverage, len(checked), math.exp(sum(losses) / len(losses)),
        )  # fmt: skip
        if min_coverage is None or coverage >= min_coverage:
            return coverage
    raise InputError(
        f"the model keeps the answer format on {coverage:.0%} of {len(checked)} held-out prompts after {max_rounds} "
        f"rounds of {steps} steps, expected at least {min_coverage:.0%}: give it more SFT records, more --steps or a "
        "lower --min-coverage"
    )


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer as one Hugging Face folder, whole or not at all."""
    with replace_directory(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def add_adapter(model: Any, rank: int, seed: int) -> Any:
    """The model, frozen, with a fresh LoRA adapter (alpha twice the rank) on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model  # takes seconds, and only adapters need it

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def save_adapter(model: Any, out: Path) -> None:
    """Write the adapter's checkpoint (configuration and weights), whole or not at all."""
    with replace_directory(out) as folder:
        write_adapter(model, folder)
