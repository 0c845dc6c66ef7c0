"""Generation with a random stream per answer, so that an answer does not depend on the batch it is decoded in."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from distill.generation.batch_probe import choose_decoding
from distill.generation.kv_cache import RowLimit
from distill.generation.rolling_batch import NOT_FINITE, PREFILL_TOKENS, Job, RollingBatch
from distill.generation.sampling import Generated, Request, Sampling, drop_cut_character, record_uniforms
from distill.models.batches import AUTO_BATCH_SIZE, in_batches
from distill.models.chat import ChatTemplate, get_end_of_turn_id
from distill.models.control_tokens import list_texts
from distill.models.memory import activation_bytes_per_token, keep_freed_memory, kv_bytes_by_layer
from distill.models.placement import layer_devices
from distill.models.rope import context_length, find_rope_switch
from distill.models.vocabulary import find_unused_ids, vocabulary_size

logger = logging.getLogger(__name__)

LOGITS_BYTES = 32  # per row and vocabulary entry: float32 logits and probabilities, float64 sums, sorted copies


class Draw:
    """Samples a token per row by inverting the cumulative distribution; at temperature 0, takes the most likely one.

    The uniform numbers come from the answer's own stream, so another batch changes an answer only if rounding of the
    logits moves a boundary of the distribution across such a number.

    Args:
        sampling: sampling settings.
        vocabulary: size of the tokenizer's vocabulary; the model's larger ids are padding.
        unused: smaller ids that stand for no token; they are never drawn.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, unused: Sequence[int] = ()):
        self.vocabulary = vocabulary
        self.unused = torch.tensor([index for index in unused if index < vocabulary], dtype=torch.long)
        self.warpers = LogitsProcessorList()
        if sampling.temperature:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Sample one token per row.

        Args:
            logits: (rows, model's vocabulary).
            uniforms: (rows,) float64 numbers in [0, 1); None for greedy decoding.

        Returns:
            (rows,) token ids; -1 if the row's logits are not finite.
        """
        scores = logits[:, : self.vocabulary].float()
        if len(self.unused):
            self.unused = self.unused.to(scores.device)
            scores = scores.index_fill(1, self.unused, float("-inf"))
        if uniforms is None:
            best = scores.max(dim=-1)
            return torch.where(best.values.isfinite(), best.indices, -1)
        no_ids = torch.LongTensor(len(scores), 0)  # the warpers ignore earlier tokens
        cumulative = self.warpers(no_ids, scores).softmax(dim=-1).double().cumsum(dim=-1)
        total = cumulative[:, -1]
        # The total is 1 except for rounding, so the uniform number is scaled by it.
        drawn = torch.searchsorted(cumulative, (uniforms * total)[:, None], right=True)[:, 0]
        return torch.where(total.isfinite(), drawn.clamp_(max=scores.shape[1] - 1), -1)


def stop_ids(generation: GenerationConfig, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the chat template's end of turn and the model's own end tokens."""
    named = generation.eos_token_id
    named = named if isinstance(named, list) else [named]
    return sorted({get_end_of_turn_id(tokenizer), *(index for index in named if index is not None)})


def has_full_attention(config: Any) -> bool:
    """Return whether every layer has full attention, as continuous batching requires.

    Sliding windows depend on the distance between tokens, and recurrent layers have no keys and values.
    """
    text = config.get_text_config()
    types = getattr(text, "layer_types", None)
    if types:
        return set(types) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None and hasattr(text, "num_key_value_heads")


def finish(chat: ChatTemplate, tokens: Sequence[int], stops: Sequence[int], prompt_tokens: int) -> Generated:
    """Truncate new tokens at the first stop token and decode them; the answer begins with what the template opened.

    Padding and BOS are left out. Other special tokens are part of the text, since many reasoning models have tags such
    as `<think>` as special tokens. A character that the maximum length cut in its middle is left out, too.
    """
    end = next((position for position, token in enumerate(tokens) if token in stops), None)
    left_out = {chat.tokenizer.pad_token_id, chat.tokenizer.bos_token_id}
    kept = [token for token in tokens[:end] if token not in left_out]
    text = chat.opened + chat.decode_answer(kept)
    count, reason = (len(tokens), "length") if end is None else (end + 1, "stop")
    return Generated(drop_cut_character(text, reason), reason, count, prompt_tokens)


def generate_requests(
    model: Any, chat: ChatTemplate, requests: Sequence[Request], sampling: Sampling, batch_size: int | None = None
) -> Iterator[list[tuple[Request, Generated]]]:
    """Yield answered requests as they finish, long prompts first; a list is empty if a step finished none.

    The model's own generation_config.json is ignored: the teacher must sample from the distribution that the student is
    trained towards.

    Args:
        model: a causal language model.
        chat: the model's chat template.
        requests: what to answer.
        sampling: sampling settings.
        batch_size: answers at a time; None adapts to the free memory. Either is halved when memory runs out.

    Raises:
        InputError: a prompt exceeds the model's context, a single answer does not fit in memory, or the logits are not
            finite.
    """
    if not requests:
        return
    prompts = [chat.encode_conversation(request.conversation) for request in requests]
    chat.log_control_tokens(list_texts(request.conversation) for request in requests)
    context = context_length(model.config)
    for request, prompt in zip(requests, prompts, strict=True):
        if context and len(prompt) >= context:
            found = f"prompt {request.id} ({request.uid}) has {len(prompt)} tokens"
            raise InputError(f"{found}, which leaves no room for an answer in the model's context of {context}")
    longest = [min(sampling.max_new_tokens, context - len(p)) if context else sampling.max_new_tokens for p in prompts]
    tokenizer = chat.tokenizer
    stops = stop_ids(model.generation_config, tokenizer)
    size = min(vocabulary_size(tokenizer), model.config.get_text_config().vocab_size)
    if chat.end_of_turn >= size:
        token = tokenizer.convert_ids_to_tokens(chat.end_of_turn)
        raise InputError(
            f"{chat.name}: expected a model that can end a turn, found one with {size} tokens, and {token!r} is token "
            f"{chat.end_of_turn}"
        )
    draw = Draw(sampling, size, find_unused_ids(tokenizer))

    def uniforms(index: int) -> np.ndarray:
        return record_uniforms(requests[index].key, sampling.seed, sampling.max_new_tokens)

    job = Job(prompts, longest, stops, uniforms if sampling.temperature else None, draw)
    for ended in decode_job(model, tokenizer, job, batch_size):
        yield [(requests[index], finish(chat, new, stops, len(prompts[index]))) for index, new in ended]


def decode_job(
    model: Any, tokenizer: Any, job: Job, batch_size: int | None = None
) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield (prompt's index, new tokens) of a job as they finish; tokens after the first stop token do not count."""
    decoders = [decode_rolling, decode_padded] if has_full_attention(model.config) else [decode_padded]
    decode, most = choose_decoding(model, tokenizer, job.stops, decoders)
    switch = find_rope_switch(model.config)
    far = [] if switch is None else [row for row, room in enumerate(find_room(job)) if room > switch]
    if far:
        text = "%d of %d answers may exceed %s tokens, where the model's RoPE changes: these are generated one by one"
        logger.warning(text, len(far), len(job.prompts), switch)
    near = sorted(set(range(len(job.prompts))) - set(far))
    for way, rows, size in ((decode, near, most or batch_size), (decode_padded, far, 1)):
        if rows:
            for ended in way(model, tokenizer, take_prompts(job, rows), size):
                yield [(rows[index], new) for index, new in ended]


def find_room(job: Job) -> list[int]:
    """Return the maximum number of tokens of each prompt with its answer."""
    return [len(prompt) + longest for prompt, longest in zip(job.prompts, job.longest, strict=True)]


def take_prompts(job: Job, rows: Sequence[int]) -> Job:
    """Return a job with some of the prompts."""
    uniforms = job.uniforms
    return replace(
        job,
        prompts=[job.prompts[row] for row in rows],
        longest=[job.longest[row] for row in rows],
        uniforms=None if uniforms is None else lambda index: uniforms(rows[index]),
    )


def decode_rolling(
    model: Any, tokenizer: Any, job: Job, batch_size: int | None
) -> Iterator[list[tuple[int, list[int]]]]:
    """Decode a job by continuous batching; see `decode_job`."""
    if model.device.type == "cpu":
        keep_freed_memory()
    yield from RollingBatch(model, job, RowLimit(batch_size, *measure_rows(model, job))).run()


def measure_rows(model: Any, job: Job) -> tuple[dict[torch.device, int], dict[torch.device, int]]:
    """Return what `size_rows` returns for a job."""
    lengths = [len(prompt) for prompt in job.prompts]
    prefilled = max(min(sum(lengths), PREFILL_TOKENS[model.device.type]), max(lengths))
    is_int8 = getattr(model, "is_loaded_in_8bit", False)
    return size_rows(model.config, model.dtype, max(find_room(job)), prefilled, is_int8, layer_devices(model))


def size_rows(
    config: Any, dtype: torch.dtype, room: int, prefilled: int, is_int8: bool, devices: Sequence[torch.device]
) -> tuple[dict[torch.device, int], dict[torch.device, int]]:
    """Estimate the bytes of a row, and those that a prefill takes for a moment, by device.

    A prefill holds the keys and values of its prompts a second time, until they are written to their rows, and the
    activations of one layer.

    Args:
        config: the model's configuration.
        dtype: dtype of keys, values and activations.
        room: tokens of the largest row.
        prefilled: tokens of the largest prefill.
        is_int8: see `activation_bytes_per_token`.
        devices: device of each layer.
    """
    step_bytes = LOGITS_BYTES * config.get_text_config().vocab_size
    activations = prefilled * activation_bytes_per_token(config, dtype, is_int8)
    rows: dict[torch.device, int] = {}
    reserved: dict[torch.device, int] = {}
    for device, token_bytes in zip(devices, kv_bytes_by_layer(config, dtype), strict=True):
        rows[device] = rows.get(device, step_bytes) + room * token_bytes
        reserved[device] = reserved.get(device, activations) + prefilled * token_bytes
    return rows, reserved


class DrawRows(LogitsProcessor):
    """Makes greedy search take the tokens that a job samples.

    Args:
        job: the job.
        rows: indices of the batch's prompts.
        padded: length of the padded prompts in tokens.
    """

    def __init__(self, job: Job, rows: Sequence[int], padded: int):
        self.job, self.padded = job, padded
        self.uniforms = torch.from_numpy(np.stack([job.uniforms(row) for row in rows])) if job.uniforms else None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return (rows, vocabulary) logits that are -inf except for the sampled token."""
        step = input_ids.shape[1] - self.padded
        uniforms = None if self.uniforms is None else self.uniforms[:, step].to(scores.device)
        drawn = self.job.draw(scores, uniforms)
        if (drawn < 0).any():
            raise InputError(NOT_FINITE)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn[:, None], 0.0)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return token ids and attention mask, (rows, longest prompt) each, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def decode_padded(
    model: Any, tokenizer: Any, job: Job, batch_size: int | None
) -> Iterator[list[tuple[int, list[int]]]]:
    """Decode a job with transformers' `generate` in padded batches, for any architecture; see `decode_job`."""
    # A batch shares max_new_tokens: a larger one would push other answers beyond the context.
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
