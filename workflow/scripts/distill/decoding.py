"""Decoding in one rolling batch: an answer that ends leaves its row to the next prompt.

A beginning that several prompts share is read once, and its keys and values serve all of them. The memory taken
grows with the rows; where it runs out the batch is halved, and what was cut off starts again, with the same answer.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from distill.batches import RowLimit
from distill.models import decoder_and_head
from distill.prefixes import Group, group_by_prefix
from distill.slots import SlotCache, keys_and_values

log = logging.getLogger(__name__)

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}  # prompt tokens that are read at a time


@dataclass
class Answer:
    """An answer under way: the prompt's index, its new tokens so far, and how many it may have."""

    index: int
    longest: int
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What is to be decoded.

    Attributes:
        prompts: token ids, each prompt at least one.
        longest: new tokens each may have, at least one.
        stops: ids that end an answer; they are part of it.
        uniforms: a prompt's index to its (longest,) random numbers; None for greedy decoding.
        draw: (rows, vocabulary) logits and (rows,) random numbers to (rows,) token ids, -1 where logits are not finite.
    """

    prompts: Sequence[list[int]]
    longest: Sequence[int]
    stops: Sequence[int]
    uniforms: Callable[[int], np.ndarray] | None
    draw: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class RollingBatch:
    """Answers to a job's prompts.

    Args:
        limit: how many rows there may be; told when memory runs out.
    """

    def __init__(self, model: Any, job: Job, limit: RowLimit):
        self.decoder, self.head = decoder_and_head(model)
        self.device, self.dtype = model.device, model.dtype
        self.job, self.limit = job, limit
        self.prefill_tokens = PREFILL_TOKENS[self.device.type]
        self.cache = SlotCache(model.config.get_text_config().num_hidden_layers, self.device)
        self.groups = deque(group_by_prefix(job.prompts))
        self.prefix: tuple[Group, DynamicCache] | None = None
        self.rows: list[Answer] = []
        self.uniforms: dict[int, np.ndarray] = {}

    def run(self) -> Iterator[list[tuple[int, list[int]]]]:
        """Yield (prompt's index, new tokens) of answers as they end.

        Raises:
            torch.OutOfMemoryError: a single answer does not fit.
            FloatingPointError: the model gives logits that are not finite.
        """
        while self.groups or self.rows:
            try:
                self.admit()
                if ended := self.leave():
                    yield ended
                    continue
                self.step()
            except torch.OutOfMemoryError:
                self.shrink()

    @torch.inference_mode()
    def admit(self) -> None:
        """Fill free rows with waiting prompts, once enough are free to be worth reading prompts together."""
        if not self.groups:
            return
        rows = self.limit.grow(len(self.rows), self.cache)
        if self.rows and rows - len(self.rows) < max(1, rows // 8):
            return
        while self.groups and len(self.rows) < rows:
            group = self.groups[0]
            taken = self.take(group, rows - len(self.rows))
            prompts = [self.job.prompts[index] for index in taken]
            self.cache.resize(rows, max(len(prompt) for prompt in prompts) + 1)
            cache, logits = self.read(group, prompts)
            first = len(self.rows)
            self.cache.write(range(first, first + len(taken)), cache, [len(prompt) for prompt in prompts])
            answers = [Answer(index, self.job.longest[index]) for index in taken]
            self.extend(answers, logits)
            # From here on they are the batch's own; before, running out of memory leaves them waiting.
            self.rows += answers
            del group.members[: len(taken)]
            if not group.members:
                self.groups.popleft()
                self.prefix = None

    def take(self, group: Group, free: int) -> list[int]:
        """The next prompts of a group that are read together."""
        width = len(self.job.prompts[group.members[0]]) - group.length
        return group.members[: max(1, min(free, self.prefill_tokens // width))]

    def read(self, group: Group, prompts: Sequence[list[int]]) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of prompts of a group, and their (prompts, vocabulary) next-token logits."""
        cache = DynamicCache()
        if group.length:
            if self.prefix is None or self.prefix[0] is not group:
                shared = DynamicCache()
                self.forward(torch.tensor([prompts[0][: group.length]], device=self.device), shared)
                self.prefix = group, shared
            for number, layer in enumerate(self.prefix[1].layers):
                keys, values = (states.expand(len(prompts), -1, -1, -1) for states in keys_and_values(layer))
                cache.update(keys, values, number)
        ends = [len(prompt) - group.length for prompt in prompts]
        # Padded on the right: what follows a prompt comes after it in the causal order, and needs no mask.
        tails = [prompt[group.length :] for prompt in prompts]
        padded = [[*tail, *[0] * (max(ends) - len(tail))] for tail in tails]
        hidden = self.forward(torch.tensor(padded, device=self.device), cache)
        last = torch.tensor(ends, device=hidden.device) - 1
        return cache, self.head(hidden[torch.arange(len(prompts), device=hidden.device), last])

    def forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """(rows, length, hidden) last hidden states of tokens that follow those in the cache."""
        return self.decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every answer."""
        rows = len(self.rows)
        longest = max(len(self.job.prompts[answer.index]) + len(answer.tokens) for answer in self.rows)
        self.cache.resize(len(self.cache.rows), longest)
        self.cache.length = longest
        positions = self.cache.positions[:rows]
        unseen = torch.arange(longest, device=self.device) > positions[:, None]
        # Numbers to be added, made once; every layer would turn truth values into them anew.
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(unseen, float("-inf"))
        hidden = self.decoder(
            input_ids=torch.tensor([answer.tokens[-1:] for answer in self.rows], device=self.device),
            position_ids=positions[:, None],
            attention_mask=mask[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.extend(self.rows, self.head(hidden[:, -1]))
        positions += 1

    def extend(self, answers: Sequence[Answer], logits: torch.Tensor) -> None:
        """Draw a token for each answer from its (vocabulary,) row of logits."""
        uniforms = None
        if self.job.uniforms is not None:
            for answer in answers:
                if not answer.tokens:
                    self.uniforms[answer.index] = self.job.uniforms(answer.index)
            drawn = [self.uniforms[answer.index][len(answer.tokens)] for answer in answers]
            uniforms = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
        tokens = self.job.draw(logits, uniforms).tolist()
        if min(tokens) < 0:
            raise FloatingPointError("the model's logits are not finite: choose another dtype or quantization")
        for answer, token in zip(answers, tokens, strict=True):
            answer.tokens.append(token)

    @torch.inference_mode()
    def leave(self) -> list[tuple[int, list[int]]]:
        """Answers that have ended; the last rows take their places."""
        ended = []
        for row in range(len(self.rows) - 1, -1, -1):
            answer = self.rows[row]
            if answer.tokens[-1] not in self.job.stops and len(answer.tokens) < answer.longest:
                continue
            ended.append((answer.index, answer.tokens))
            self.uniforms.pop(answer.index, None)
            last = self.rows.pop()
            if last is not answer:
                self.rows[row] = last
                self.cache.move(len(self.rows), row)
        return ended

    @torch.inference_mode()
    def shrink(self) -> None:
        """Halve the batch; what is cut off waits again.

        Raises:
            torch.OutOfMemoryError: there is one row at most, and one prompt is read at a time.
        """
        rows = self.limit.halve()
        self.prefill_tokens //= 2
        self.prefix = None
        cut = [answer.index for answer in self.rows[rows:]]
        self.rows = self.rows[:rows]
        if cut:
            self.groups.appendleft(Group(0, sorted(cut, key=lambda index: -len(self.job.prompts[index]))))
        self.cache.resize(rows, 1)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("out of memory: going on with %d answers at a time", rows)
