"""Decoding in one rolling batch: an answer that ends leaves its row to the next prompt.

A beginning that several prompts share is read once, and its keys and values serve all of them. The memory taken
grows with the rows; where it runs out the batch is halved, and what was cut off starts again, with the same answer.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache

from distill.common.errors import InputError
from distill.generation.kv_cache import RowLimit, SlotCache, keys_and_values
from distill.generation.prefixes import Group, group_by_prefix
from distill.models.batches import is_out_of_memory
from distill.models.completions import decoder_and_head

logger = logging.getLogger(__name__)

NOT_FINITE = "the model's logits are not finite: choose another dtype or quantization"
NO_ROOM = (
    "memory does not hold the model and a single answer: choose quantization int8 or nf4, a smaller max_new_tokens, a "
    "larger device, or a server (engine openai)"
)
PREFILL_TOKENS = {"cpu": 4096, "cuda": 16384}  # prompt tokens that are read at a time


@dataclass
class Answer:
    """An answer under way: the prompt's index, its new tokens so far, and how many it may have."""

    index: int
    longest: int
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Beginning:
    """What prompts share: keys and values of its tokens, a pair of (1, heads, length, dimension) a layer."""

    length: int
    states: list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Waiting:
    """A prompt that is not read yet.

    Attributes:
        beginning: what need not be read, since another prompt with the same beginning was.
        group: whose beginning this one is to give, for those that follow.
    """

    index: int
    beginning: Beginning | None = None
    group: Group | None = None


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
        first: list[Waiting] = []
        for group in group_by_prefix(job.prompts):
            first += [Waiting(group.members[0], group=group)] if group.length else map(Waiting, group.members)
        self.first = deque(sorted(first, key=lambda waiting: -len(job.prompts[waiting.index])))
        self.followers: deque[Waiting] = deque()
        self.waiting = len(job.prompts)
        self.rows: list[Answer] = []
        self.uniforms: dict[int, np.ndarray] = {}

    def run(self) -> Iterator[list[tuple[int, list[int]]]]:
        """Yield (prompt's index, new tokens) of answers as they end.

        An empty list says that a step was made, so that a caller can show that it goes on.

        Raises:
            InputError: a single answer does not fit, or the model gives logits that are not finite.
        """
        try:
            while self.waiting or self.rows:
                is_full = False
                try:
                    self.admit()
                    ended = self.leave()
                    if not ended and self.rows:
                        self.step()
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if not self.limit.halve():
                        raise InputError(NO_ROOM) from error
                    is_full = True
                # Not while the error is handled: it holds on to what the failed step had allocated.
                if is_full:
                    self.restart()
                else:
                    yield ended
        finally:
            self.cache.release()

    @torch.inference_mode()
    def admit(self) -> None:
        """Fill free rows with waiting prompts, once enough are free to be worth reading prompts together."""
        if not self.waiting:
            return
        limit = self.limit.grow(len(self.rows), self.cache)
        rows = max(min(limit, len(self.rows) + self.waiting), len(self.cache.rows))
        if self.rows and limit - len(self.rows) < min(max(1, limit // 8), self.waiting):
            return
        while (queue := self.followers or self.first) and len(self.rows) < limit:
            taken = self.take(queue, limit - len(self.rows))
            prompts = [self.job.prompts[waiting.index] for waiting in taken]
            self.cache.resize(rows, max(len(prompt) for prompt in prompts) + 1)
            cache, logits = self.read(taken)
            # Padded on the left, a row's own keys end where its prompt does.
            begin = max(count_read(waiting) for waiting in taken)
            starts = [begin - count_read(waiting) for waiting in taken]
            self.cache.write(len(self.rows), cache, starts, [len(prompt) for prompt in prompts])
            answers = [Answer(waiting.index, self.job.longest[waiting.index]) for waiting in taken]
            self.extend(answers, logits)
            followers = [other for row, waiting in enumerate(taken) for other in follow(waiting, row, cache)]
            # From here on they are the batch's own; before, running out of memory leaves them waiting.
            self.rows += answers
            self.waiting -= len(taken)
            for _ in taken:
                queue.popleft()
            self.followers += followers

    def take(self, queue: deque[Waiting], free: int) -> list[Waiting]:
        """The next prompts, as many as are read together."""
        taken: list[Waiting] = []
        width = longest = 0
        for waiting in islice(queue, free):
            longest = max(longest, len(self.job.prompts[waiting.index]))
            width = max(width, len(self.job.prompts[waiting.index]) - count_read(waiting))
            # Beginnings cost no time, but a copy of their keys and values.
            if taken and max(width, longest / 4) * (len(taken) + 1) > self.prefill_tokens:
                break
            taken.append(waiting)
        return taken

    def read(self, taken: Sequence[Waiting]) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of prompts, and their (prompts, vocabulary) next-token logits.

        Beginnings are padded on the left, and what follows them on the right: padding behind a prompt comes after it in
        the causal order, and needs no mask.
        """
        starts = [count_read(waiting) for waiting in taken]
        tails = [self.job.prompts[one.index][start:] for one, start in zip(taken, starts, strict=True)]
        width = max(map(len, tails))
        ids = torch.tensor([[*tail, *[0] * (width - len(tail))] for tail in tails], device=self.device)
        cache, mask = DynamicCache(), None
        if begin := max(starts):
            for number, states in enumerate(join_beginnings(taken, begin)):
                cache.update(*states, number)
            padding = begin - torch.tensor(starts, device=self.device)
            mask = (torch.arange(begin + width, device=self.device) >= padding[:, None]).long()
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(width, device=self.device)
        hidden = self.forward(ids, cache, positions, mask)
        last = torch.tensor([len(tail) - 1 for tail in tails], device=hidden.device)
        return cache, self.head(hidden[torch.arange(len(taken), device=hidden.device), last])

    def forward(
        self, ids: torch.Tensor, cache: Cache, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(rows, length, hidden) last hidden states of (rows, length) tokens that follow those in the cache."""
        return self.decoder(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

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
        ids = torch.tensor([answer.tokens[-1:] for answer in self.rows], device=self.device)
        hidden = self.forward(ids, self.cache, positions[:, None], mask[:, None, None])
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
            raise InputError(NOT_FINITE)
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

    def restart(self) -> None:
        """Have all answers wait again, and give back all memory: the smaller batch makes the same ones."""
        again = [answer.index for answer in self.rows] + [waiting.index for waiting in self.followers]
        self.waiting += len(self.rows)
        self.first.extendleft(map(Waiting, sorted(again, key=lambda index: len(self.job.prompts[index]))))
        self.rows = []
        self.followers.clear()  # and the beginnings that were kept for them
        self.prefill_tokens = max(1, self.prefill_tokens // 2)
        self.cache.release()
        self.cache = SlotCache(len(self.cache.slots), self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory: going on with %d answers at a time", self.limit.size)


def count_read(waiting: Waiting) -> int:
    """Tokens at a prompt's beginning that need not be read."""
    return waiting.beginning.length if waiting.beginning else 0


def follow(waiting: Waiting, row: int, cache: DynamicCache) -> list[Waiting]:
    """The prompts that share the beginning of one that was read in full, in a row of a cache."""
    if waiting.group is None:
        return []
    length = waiting.group.length
    pairs = map(keys_and_values, cache.layers)
    part = slice(row, row + 1), slice(None), slice(length)
    beginning = Beginning(length, [(keys[part].clone(), values[part].clone()) for keys, values in pairs])
    return [Waiting(index, beginning) for index in waiting.group.members[1:]]


def join_beginnings(taken: Sequence[Waiting], longest: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each layer's (prompts, heads, longest, dimension) keys and values of beginnings, padded on the left."""
    beginnings = [waiting.beginning.states if waiting.beginning else [] for waiting in taken]
    for layer in zip(*beginnings, strict=True):
        sides = zip(*layer, strict=True)
        keys, values = (torch.cat([pad(one, (0, 0, longest - one.shape[2], 0)) for one in side]) for side in sides)
        yield keys, values
