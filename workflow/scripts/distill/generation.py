"""Generation in batches in which every record draws from its own random stream."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from distill.batches import AUTO_BATCH_SIZE, in_batches
from distill.chat import encode_prompt, get_end_of_turn_id


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        temperature: 0 takes the most likely token (greedy).
        top_p: nucleus, 1 is off.
        top_k: most likely tokens kept, 0 is off.
        seed: of the records' random streams.
    """

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 42

    def digest_parts(self) -> dict[str, Any]:
        """What decides an answer: at temperature 0 nothing is drawn, so the rest does not count."""
        parts = asdict(self)
        return parts if self.temperature else {"max_new_tokens": self.max_new_tokens, "temperature": 0.0}


@dataclass(frozen=True)
class Generated:
    """One answer: its text without special tokens, `stop` or `length`, and its tokens with the end of the turn."""

    text: str
    finish_reason: str
    tokens: int


def record_uniforms(key: str, seed: int, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) that belong to one record, whatever batch it is in."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big")).random(count)


class RecordSampler(LogitsProcessor):
    """Draws the next token of each row by the inverse of its cumulative distribution.

    Raises FloatingPointError where a model gives logits that are not finite.

    The uniform numbers come from the record's own stream, so batch layout changes an answer only where the
    logits' rounding moves a boundary across such a number. All other tokens get -inf, so that greedy search
    takes the one drawn.

    Args:
        keys: one a row, in the batch's order.
        prompt_length: tokens of the padded prompts.
        sampling: temperature above 0.
    """

    def __init__(self, keys: Sequence[str], prompt_length: int, sampling: Sampling):
        uniforms = [record_uniforms(key, sampling.seed, sampling.max_new_tokens) for key in keys]
        self.uniforms = torch.from_numpy(np.stack(uniforms))
        self.prompt_length = prompt_length
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, length) ids and (rows, vocabulary) logits to logits that leave the drawn token alone."""
        probabilities = self.warpers(input_ids, scores.float()).softmax(dim=-1)
        cumulative = probabilities.double().cumsum(dim=-1)
        if not cumulative[:, -1].isfinite().all():
            raise FloatingPointError("the model's logits are not finite: choose another dtype or quantization")
        step = input_ids.shape[1] - self.prompt_length
        uniform = self.uniforms[:, step].to(scores.device)
        # The last sum is 1 but for rounding, so it scales the number drawn.
        drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        chosen = torch.full_like(scores, float("-inf"))
        return chosen.scatter_(1, drawn.clamp_(max=scores.shape[1] - 1), 0.0)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids and attention mask, each (rows, longest prompt), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer: the template's end of turn and what the model itself names."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return sorted({get_end_of_turn_id(tokenizer), *(index for index in named if index is not None)})


@torch.inference_mode()
def generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], keys: Sequence[str], sampling: Sampling
) -> list[Generated]:
    """Answers to one batch of encoded prompts.

    Only `sampling` counts: a penalty or a temperature in the model's own generation_config.json does not, since
    the distribution that is sampled has to be the one that a student is trained towards.
    """
    inputs = left_pad(prompts, tokenizer.pad_token_id, model.device)
    length = inputs["input_ids"].shape[1]
    stops = stop_ids(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    # Ids beyond the tokenizer's are padding of the vocabulary, and stand for no token.
    padding = list(range(len(tokenizer), model.get_output_embeddings().weight.shape[0]))
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor(padding, model.device)] if padding else [])
    if sampling.temperature:
        processors.append(RecordSampler(keys, length, sampling))
    own, model.generation_config = model.generation_config, settings
    try:
        output = model.generate(**inputs, generation_config=settings, logits_processor=processors)
    finally:
        model.generation_config = own
    return [finish(tokenizer, row, stops) for row in output[:, length:].tolist()]


def finish(tokenizer: Any, tokens: list[int], stops: Sequence[int]) -> Generated:
    """Cut a row of new tokens at the first that ends an answer."""
    end = next((position for position, token in enumerate(tokens) if token in stops), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return Generated(text, "length" if end is None else "stop", len(tokens) if end is None else end + 1)


def generate_records(
    model: Any, tokenizer: Any, records: Sequence[dict[str, Any]], sampling: Sampling, batch_size: int | None = None
) -> Iterator[list[tuple[dict[str, Any], Generated]]]:
    """Yield the answered records of one batch after the other, long prompts first.

    Args:
        records: each with `uid`, `system` and `prompt`.
        batch_size: None for a size by device; either is halved, for good, when memory runs out.

    Raises:
        torch.OutOfMemoryError: a single record does not fit.
    """
    prompts = [encode_prompt(tokenizer, record["system"], record["prompt"]) for record in records]
    order = sorted(range(len(records)), key=lambda index: -len(prompts[index]))

    def answer(rows: list[int]) -> list[tuple[dict[str, Any], Generated]]:
        keys = [records[row]["uid"] for row in rows]
        answers = generate_batch(model, tokenizer, [prompts[row] for row in rows], keys, sampling)
        return [(records[row], generated) for row, generated in zip(rows, answers, strict=True)]

    yield from in_batches(order, answer, batch_size or AUTO_BATCH_SIZE[model.device.type])
