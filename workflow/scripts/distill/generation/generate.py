"""Generation in which every answer draws from its own random stream, whatever is decoded beside it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from distill.common.errors import InputError
from distill.generation.kv_cache import RowLimit
from distill.generation.rolling_batch import NOT_FINITE, Job, RollingBatch
from distill.generation.sampling import Generated, Request, Sampling, record_uniforms
from distill.models.batches import AUTO_BATCH_SIZE, in_batches
from distill.models.chat import encode_prompt, get_end_of_turn_id
from distill.models.memory import keep_freed_memory, kv_bytes_per_token

LOGITS_BYTES = 32  # of float32 logits, probabilities, float64 sums and sorted copies, a row and token of the vocabulary


class Draw:
    """Draws a token for each row by the inverse of its cumulative distribution; the likeliest at temperature 0.

    The uniform numbers come from the record's own stream, so batch layout changes an answer only where the logits'
    rounding moves a boundary across such a number.

    Args:
        vocabulary: ids from here on are padding of the model's vocabulary and stand for no token.
    """

    def __init__(self, sampling: Sampling, vocabulary: int):
        self.vocabulary = vocabulary
        self.warpers = LogitsProcessorList()
        if sampling.temperature:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """(rows, vocabulary) logits, (rows,) float64 numbers or None for greedy, to (rows,) ids; -1: not finite."""
        scores = logits[:, : self.vocabulary].float()
        if uniforms is None:
            best = scores.max(dim=-1)
            return torch.where(best.values.isfinite(), best.indices, -1)
        no_ids = torch.LongTensor(len(scores), 0)  # none of the warpers looks at what came before
        cumulative = self.warpers(no_ids, scores).softmax(dim=-1).double().cumsum(dim=-1)
        total = cumulative[:, -1]
        # The last sum is 1 but for rounding, so it scales the number drawn.
        drawn = torch.searchsorted(cumulative, (uniforms * total)[:, None], right=True)[:, 0]
        return torch.where(total.isfinite(), drawn.clamp_(max=scores.shape[1] - 1), -1)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer: the template's end of turn and what the model itself names."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return sorted({get_end_of_turn_id(tokenizer), *(index for index in named if index is not None)})


def context_length(config: Any) -> int | None:
    """Tokens that a model's context holds, prompt and answer together; None where its configuration names none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def has_full_attention(config: Any) -> bool:
    """Whether every layer attends to all tokens before, as the rolling batch needs.

    Sliding windows count tokens between, and recurrent layers have no keys and values.
    """
    text = config.get_text_config()
    types = getattr(text, "layer_types", None)
    if types:
        return set(types) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None and hasattr(text, "num_key_value_heads")


def finish(tokenizer: Any, tokens: Sequence[int], stops: Sequence[int], prompt_tokens: int) -> Generated:
    """Cut new tokens at the first that ends an answer."""
    end = next((position for position, token in enumerate(tokens) if token in stops), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    count = len(tokens) if end is None else end + 1
    return Generated(text, "length" if end is None else "stop", count, prompt_tokens)


def generate_requests(
    model: Any, tokenizer: Any, requests: Sequence[Request], sampling: Sampling, batch_size: int | None = None
) -> Iterator[list[tuple[Request, Generated]]]:
    """Yield answered requests as they end, long prompts first; an empty list where a step ended none.

    Only `sampling` counts: a penalty or a temperature in the model's own generation_config.json does not, since
    the distribution that is sampled has to be the one that a student is trained towards.

    Args:
        batch_size: answers at a time; None grows to the memory there is. Either is halved when memory runs out.

    Raises:
        InputError: a prompt that the model's context has no room for, a single answer that memory has no room for, or
            logits that are not finite.
    """
    if not requests:
        return
    prompts = [encode_prompt(tokenizer, request.system, request.prompt) for request in requests]
    context = context_length(model.config)
    for request, prompt in zip(requests, prompts, strict=True):
        if context and len(prompt) >= context:
            found = f"prompt {request.id} ({request.uid}) has {len(prompt)} tokens"
            raise InputError(f"{found}, the model's context of {context} has no room for an answer")
    longest = [min(sampling.max_new_tokens, context - len(p)) if context else sampling.max_new_tokens for p in prompts]
    stops = stop_ids(model, tokenizer)

    def uniforms(index: int) -> np.ndarray:
        return record_uniforms(requests[index].key, sampling.seed, sampling.max_new_tokens)

    job = Job(prompts, longest, stops, uniforms if sampling.temperature else None, Draw(sampling, len(tokenizer)))
    for ended in decode_job(model, tokenizer, job, batch_size):
        yield [(requests[index], finish(tokenizer, new, stops, len(prompts[index]))) for index, new in ended]


def decode_job(
    model: Any, tokenizer: Any, job: Job, batch_size: int | None = None
) -> Iterator[list[tuple[int, list[int]]]]:
    """New tokens of a job's prompts by index; those after the first that ends an answer are none of it."""
    decode = decode_rolling if has_full_attention(model.config) else decode_padded
    yield from decode(model, tokenizer, job, batch_size)


def decode_rolling(
    model: Any, tokenizer: Any, job: Job, batch_size: int | None
) -> Iterator[list[tuple[int, list[int]]]]:
    """New tokens of a job's prompts by index, from one rolling batch."""
    if model.device.type == "cpu":
        keep_freed_memory()
    room = max(len(prompt) + longest for prompt, longest in zip(job.prompts, job.longest, strict=True))
    step_bytes = LOGITS_BYTES * model.config.get_text_config().vocab_size
    row_bytes = room * kv_bytes_per_token(model.config, model.dtype) + step_bytes
    devices = list(dict.fromkeys([model.device, *(weight.device for weight in model.parameters())]))
    yield from RollingBatch(model, job, RowLimit(batch_size, devices, row_bytes)).run()


class DrawRows(LogitsProcessor):
    """Has greedy search take the tokens that a job draws.

    Args:
        rows: the batch's prompts, by their indices.
        padded: tokens of the padded prompts.
    """

    def __init__(self, job: Job, rows: Sequence[int], padded: int):
        self.job, self.padded = job, padded
        self.uniforms = torch.from_numpy(np.stack([job.uniforms(row) for row in rows])) if job.uniforms else None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, length) ids and (rows, vocabulary) logits to logits that leave the drawn token alone."""
        step = input_ids.shape[1] - self.padded
        uniforms = None if self.uniforms is None else self.uniforms[:, step].to(scores.device)
        drawn = self.job.draw(scores, uniforms)
        if (drawn < 0).any():
            raise InputError(NOT_FINITE)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn[:, None], 0.0)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids and attention mask, each (rows, longest prompt), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def decode_padded(
    model: Any, tokenizer: Any, job: Job, batch_size: int | None
) -> Iterator[list[tuple[int, list[int]]]]:
    """The same by transformers' `generate` in padded batches, for models of any architecture."""
    # Only answers that may be equally long go together: a longer one would take others beyond the context.
    order = sorted(range(len(job.prompts)), key=lambda index: (job.longest[index], -len(job.prompts[index])))

    @torch.inference_mode()
    def answer(rows: list[int]) -> list[tuple[int, list[int]]]:
        inputs = left_pad([job.prompts[row] for row in rows], tokenizer.pad_token_id, model.device)
        length = inputs["input_ids"].shape[1]
        settings = GenerationConfig(
            max_new_tokens=job.longest[rows[0]],
            do_sample=False,
            eos_token_id=list(job.stops),
            pad_token_id=tokenizer.pad_token_id,
        )
        processors = LogitsProcessorList([DrawRows(job, rows, length)])
        own, model.generation_config = model.generation_config, settings
        try:
            output = model.generate(**inputs, generation_config=settings, logits_processor=processors)
        finally:
            model.generation_config = own
        return list(zip(rows, output[:, length:].tolist(), strict=True))

    for _, alike in groupby(order, key=lambda index: job.longest[index]):
        yield from in_batches(list(alike), answer, batch_size or AUTO_BATCH_SIZE[model.device.type])
