"""Tiny models for the demo: Qwen2 models trained from scratch on SFT records, and LoRA adapters for them.

They are ordinary Hugging Face folders, so the workflow uses them in the same way as the real models.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from distill.common.errors import InputError
from distill.common.files import replace_directory
from distill.demo.batches import Example
from distill.demo.options import DemoStudent
from distill.models.adapters import write_adapter
from distill.records.answer_format import parse_answer

logger = logging.getLogger(__name__)

KEY = "holding_log_delta"
# Such narrow models learn to copy numbers late with the usual 0.02: 5 % correct answers after 400 steps with batches of
# 16 and a learning rate of 5e-3. With 0.08 and 3e-3 it is 87 % after 200 steps.
INITIALIZER_RANGE = 0.08
MAX_CHECKED = 64  # held-out prompts per check of the answer format
IGNORED = -100


def build_model(tokenizer: Any, sizes: DemoStudent, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights. Its vocabulary may exceed the tokenizer's, as that of real Qwen models does.

    Raises:
        InputError: the vocabulary is smaller than the tokenizer's, or the hidden size is not a multiple of twice the
            number of heads.
    """
    if sizes.vocab_size < len(tokenizer):
        size = len(tokenizer)
        raise InputError(f"--vocab-size: expected at least the tokenizer's {size} tokens, found {sizes.vocab_size}")
    if sizes.hidden % (2 * sizes.heads):
        raise InputError(f"--hidden: expected a multiple of twice the {sizes.heads} heads, found {sizes.hidden}")
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
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


def completion_loss(model: nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy in nats over the completion tokens of a batch.

    The batch is padded on the right, so causal attention needs no mask for the padding (id 0).
    """
    length = max(len(prompt) + len(completion) for prompt, completion in batch)
    ids = torch.tensor([[*p, *c, *[0] * (length - len(p) - len(c))] for p, c in batch])
    labels = torch.tensor([[*[IGNORED] * len(p), *c, *[IGNORED] * (length - len(p) - len(c))] for p, c in batch])
    logits = model(input_ids=ids).logits[:, :-1]
    targets = labels[:, 1:]
    counted = targets != IGNORED
    return F.cross_entropy(logits[counted], targets[counted])


def train_round(model: nn.Module, batches: Iterator[list[Example]], steps: int, learning_rate: float) -> None:
    """Take `steps` AdamW steps.

    The learning rate warms up linearly over the first tenth of the steps, and decays to 5 % along a cosine.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warmup_steps = max(1, steps // 10)
    model.train()
    started = time.perf_counter()
    for step in range(1, steps + 1):
        rate = min(1.0, step / warmup_steps) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
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
    """Whether an answer is `<think>…</think><answer>{…}</answer>` with a finite number at KEY."""
    answer = parse_answer(text, KEY)
    return answer.problem is None and answer.think is not None


@torch.inference_mode()
def measure_coverage(model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int = 32) -> float:
    """The share (0 to 1) of prompts whose greedily decoded answer has the answer format."""
    model.eval()
    count = 0
    longest = max(len(completion) for _, completion in examples)
    for start in range(0, len(examples), batch_size):
        prompts = [prompt for prompt, _ in examples[start : start + batch_size]]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=longest + 16)
        answers = output[:, inputs["input_ids"].shape[1] :]
        count += sum(map(keeps_format, tokenizer.batch_decode(answers, skip_special_tokens=True)))
    return count / len(examples)


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
    """Train in rounds until enough held-out prompts are answered in the format.

    Args:
        model: the model to train.
        tokenizer: its tokenizer.
        batches: training batches.
        held_out: held-out examples.
        steps: optimizer steps per round.
        learning_rate: peak learning rate of a round.
        min_coverage: share (0 to 1) of held-out prompts to answer in the format; None trains for one round.
        max_rounds: maximum number of rounds.

    Returns:
        The share of held-out prompts that are answered in the format.

    Raises:
        InputError: the share is below `min_coverage` after `max_rounds` rounds.
    """
    checked = held_out[:MAX_CHECKED]
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
        f"rounds of {steps} steps, expected at least {min_coverage:.0%}; pass more SFT records, more --steps or a "
        "lower --min-coverage"
    )


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer to a Hugging Face folder, atomically."""
    with replace_directory(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def add_adapter(model: Any, rank: int, seed: int) -> Any:
    """Freeze the model and add a new LoRA adapter (alpha = 2 · rank) to every linear layer except the output head."""
    from peft import LoraConfig, get_peft_model  # takes seconds to import; only adapters need it

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def save_adapter(model: Any, out: Path) -> None:
    """Write the adapter's configuration and weights, atomically."""
    with replace_directory(out) as folder:
        write_adapter(model, folder)
