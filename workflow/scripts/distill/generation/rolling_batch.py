"""Continuous batching: when a sequence finishes, the next waiting prompt takes its row.

A prefix that several prompts share is prefilled once, and its KV cache is copied to all of them. Memory grows with the
rows; when it runs out, the batch is halved, and the running sequences are prefilled again with their tokens so far.
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
from distill.generation.kv_cache import RowLimit, SlotCache, keys_and_values, make_tensor
from distill.generation.prefixes import Group, group_by_prefix
from distill.models.batches import is_out_of_memory
from distill.models.completions import decoder_and_head, project
from distill.models.logits import read_transform

logger = logging.getLogger(__name__)

NOT_FINITE = "the model's logits are not finite: choose another dtype or quantization"
NO_ROOM = (
    "the model and a single sequence do not fit in memory: choose quantization int8 or nf4, a smaller max_new_tokens, "
    "a larger device, or a server (engine openai)"
)
PREFILL_TOKENS = {"cpu": 4096, "cuda": 16384}  # prompt tokens per prefill
# A step attends to a multiple of this many keys: on a GPU, another length may need another kernel or its plan, and the
# memory-efficient kernel copies masks whose rows are not aligned to 8 elements.
KEY_MULTIPLE = {"cpu": 1, "cuda": 64}


@dataclass
class Running:
    """A running sequence.

    Attributes:
        index: index of its prompt.
        longest: maximum number of new tokens.
        tokens: new tokens so far.
    """

    index: int
    longest: int
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Prefix:
    """The KV cache of a shared prefix.

    Attributes:
        length: number of tokens.
        states: keys and values of each layer, (1, heads, length, head size) each.
    """

    length: int
    states: list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Waiting:
    """A prompt that is not prefilled yet, or a sequence to continue.

    Attributes:
        index: index of the prompt.
        prefix: its prefix, if another prompt with the same one is already prefilled.
        group: prompts that wait for the prefix of this one.
        tokens: new tokens so far, which are prefilled with the prompt.
    """

    index: int
    prefix: Prefix | None = None
    group: Group | None = None
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """What to decode.

    Attributes:
        prompts: token ids of each prompt, at least one.
        longest: maximum number of new tokens of each prompt, at least one.
        stops: ids that end an answer; they are part of it.
        uniforms: returns the (longest,) random numbers of a prompt, given its index; None for greedy decoding.
        draw: maps (rows, vocabulary) logits and (rows,) random numbers to (rows,) token ids, -1 if not finite.
    """

    prompts: Sequence[list[int]]
    longest: Sequence[int]
    stops: Sequence[int]
    uniforms: Callable[[int], np.ndarray] | None
    draw: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class RollingBatch:
    """Decodes a job by continuous batching.

    Args:
        model: a causal language model with full attention in every layer.
        job: what to decode.
        limit: maximum number of rows; it is halved when memory runs out.
    """

    def __init__(self, model: Any, job: Job, limit: RowLimit):
        self.decoder, self.head = decoder_and_head(model)
        self.transform = read_transform(model.config)
        self.device, self.dtype = model.device, model.dtype
        self.job, self.limit = job, limit
        self.prefill_tokens = PREFILL_TOKENS[self.device.type]
        self.cache = SlotCache(model.config.get_text_config().num_hidden_layers, self.device)
        queue: list[Waiting] = []
        for group in group_by_prefix(job.prompts):
            queue += [Waiting(group.members[0], group=group)] if group.length else map(Waiting, group.members)
        self.queue = deque(sorted(queue, key=lambda waiting: -len(job.prompts[waiting.index])))
        self.followers: deque[Waiting] = deque()  # their prefix is prefilled and held in memory, so they go first
        self.waiting = len(job.prompts)
        self.rows: list[Running] = []
        self.uniforms: dict[int, np.ndarray] = {}

    def run(self) -> Iterator[list[tuple[int, list[int]]]]:
        """Yield (prompt's index, new tokens) of finished sequences.

        An empty list means that a step finished no sequence; it lets the caller report progress.

        Raises:
            InputError: a single sequence does not fit in memory, or the logits are not finite.
        """
        try:
            while self.waiting or self.rows:
                is_full = False
                try:
                    self.admit()
                    finished = self.remove_finished()
                    if not finished and self.rows:
                        self.step()
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if not self.limit.halve():
                        raise InputError(NO_ROOM) from error
                    is_full = True
                # Outside the except block: the traceback holds references to what the failed step allocated.
                yield self.restart() if is_full else finished
        finally:
            self.cache.release()

    @torch.inference_mode()
    def admit(self) -> None:
        """Prefill waiting prompts into free rows, once enough rows are free to make a common prefill worthwhile."""
        if not self.waiting:
            return
        limit = self.limit.grow(len(self.rows), self.cache)
        rows = max(min(limit, len(self.rows) + self.waiting), len(self.cache.rows))
        if self.rows and limit - len(self.rows) < min(max(1, limit // 8), self.waiting):
            return
        while (queue := self.followers or self.queue) and len(self.rows) < limit:
            taken = self.select(queue, limit - len(self.rows))
            lengths = [self.count_known(waiting) for waiting in taken]
            self.cache.resize(rows, max(lengths) + 1)
            sequences = [
                Running(waiting.index, self.job.longest[waiting.index], list(waiting.tokens)) for waiting in taken
            ]
            uniforms = self.take_uniforms(sequences)
            cache, logits = self.prefill(taken)
            # Prefixes are padded on the left up to the longest one.
            longest = max(count_cached(waiting) for waiting in taken)
            starts = [longest - count_cached(waiting) for waiting in taken]
            self.cache.write(len(self.rows), cache, starts, lengths)
            self.append_tokens(sequences, logits, uniforms)
            followers = [other for row, waiting in enumerate(taken) for other in find_followers(waiting, row, cache)]
            # Only now: if memory ran out above, the prompts are still in the queue.
            self.rows += sequences
            self.waiting -= len(taken)
            for _ in taken:
                queue.popleft()
            self.followers += followers

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) logits of (rows, width) hidden states."""
        return project(hidden, self.head, self.transform)

    def count_known(self, waiting: Waiting) -> int:
        """Return the number of tokens to prefill: the prompt's and those so far."""
        return len(self.job.prompts[waiting.index]) + len(waiting.tokens)

    def select(self, queue: deque[Waiting], free: int) -> list[Waiting]:
        """Return the first prompts of a queue that one prefill can take, at most `free`."""
        taken: list[Waiting] = []
        width = longest = 0
        for waiting in islice(queue, free):
            longest = max(longest, self.count_known(waiting))
            width = max(width, self.count_known(waiting) - count_cached(waiting))
            # A cached prefix costs no computation, but its keys and values are copied.
            if taken and max(width, longest / 4) * (len(taken) + 1) > self.prefill_tokens:
                break
            taken.append(waiting)
        return taken

    def prefill(self, taken: Sequence[Waiting]) -> tuple[DynamicCache, torch.Tensor]:
        """Prefill prompts.

        Cached prefixes are padded on the left, the remaining tokens on the right: the causal mask hides padding that
        comes after a prompt, so no mask is needed without prefixes.

        Returns:
            The KV cache of the prompts, and their (prompts, vocabulary) next-token logits.
        """
        starts = [count_cached(waiting) for waiting in taken]
        tails = [[*self.job.prompts[one.index][start:], *one.tokens] for one, start in zip(taken, starts, strict=True)]
        width = max(map(len, tails))
        ids = make_tensor([[*tail, *[0] * (width - len(tail))] for tail in tails], self.device)
        last = make_tensor([len(tail) - 1 for tail in tails], self.device)
        first = make_tensor(starts, self.device)
        cache, mask = DynamicCache(), None
        if longest := max(starts):
            for number, states in enumerate(join_prefixes(taken, longest)):
                cache.update(*states, number)
            mask = (torch.arange(longest + width, device=self.device) >= (longest - first)[:, None]).long()
        positions = first[:, None] + torch.arange(width, device=self.device)
        hidden = self.forward(ids, cache, positions, mask)
        return cache, self.project(hidden[torch.arange(len(taken), device=hidden.device), last.to(hidden.device)])

    def forward(
        self, ids: torch.Tensor, cache: Cache, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the (rows, length, hidden) last hidden states of (rows, length) tokens that follow the cached ones."""
        return self.decoder(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one more token for every running sequence."""
        rows = len(self.rows)
        longest = max(len(self.job.prompts[one.index]) + len(one.tokens) for one in self.rows)
        self.cache.resize(len(self.cache.rows), longest)
        multiple = KEY_MULTIPLE[self.device.type]
        self.cache.length = -(-longest // multiple) * multiple
        # Before the forward pass: a copy behind it would keep the GPU waiting for the next kernels.
        ids = make_tensor([one.tokens[-1:] for one in self.rows], self.device)
        uniforms = self.take_uniforms(self.rows)
        positions = self.cache.positions[:rows]
        unseen = torch.arange(self.cache.length, device=self.device) > positions[:, None]
        # An additive mask, made once: every layer would convert a boolean mask again.
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(unseen, float("-inf"))
        hidden = self.forward(ids, self.cache, positions[:, None], mask[:, None, None])
        self.append_tokens(self.rows, self.project(hidden[:, -1]), uniforms)
        positions += 1

    def take_uniforms(self, sequences: Sequence[Running]) -> torch.Tensor | None:
        """Return the (sequences,) random numbers of the next token of each sequence; None for greedy decoding."""
        if self.job.uniforms is None:
            return None
        for one in sequences:
            if one.index not in self.uniforms:
                self.uniforms[one.index] = self.job.uniforms(one.index)
        drawn = [float(self.uniforms[one.index][len(one.tokens)]) for one in sequences]
        return make_tensor(drawn, self.device, torch.float64)

    def append_tokens(self, sequences: Sequence[Running], logits: torch.Tensor, uniforms: torch.Tensor | None) -> None:
        """Sample the next token of each sequence.

        Args:
            sequences: the sequences, which are extended.
            logits: (sequences, vocabulary).
            uniforms: from `take_uniforms`.

        Raises:
            InputError: the logits are not finite.
        """
        if uniforms is not None:
            uniforms = uniforms.to(logits.device)
        tokens = self.job.draw(logits, uniforms).tolist()
        if min(tokens) < 0:
            raise InputError(NOT_FINITE)
        for one, token in zip(sequences, tokens, strict=True):
            one.tokens.append(token)

    def is_finished(self, one: Running) -> bool:
        """Return whether a sequence has ended, or has its maximum length."""
        return one.tokens[-1] in self.job.stops or len(one.tokens) >= one.longest

    @torch.inference_mode()
    def remove_finished(self) -> list[tuple[int, list[int]]]:
        """Remove and return finished sequences; the last rows move to the rows that become free."""
        finished = []
        for row in range(len(self.rows) - 1, -1, -1):
            one = self.rows[row]
            if not self.is_finished(one):
                continue
            finished.append((one.index, one.tokens))
            self.uniforms.pop(one.index, None)
            last = self.rows.pop()
            if last is not one:
                self.rows[row] = last
                self.cache.move(len(self.rows), row)
        return finished

    def restart(self) -> list[tuple[int, list[int]]]:
        """Free all memory and move the running sequences back to the queue with their tokens so far.

        A smaller batch gives the same answers, since a sequence's random numbers depend on its prompt and length only.

        Returns:
            Sequences that were finished already, as from `remove_finished`.
        """
        finished = [(one.index, one.tokens) for one in self.rows if self.is_finished(one)]
        for index, _ in finished:
            self.uniforms.pop(index, None)
        running = [Waiting(one.index, tokens=tuple(one.tokens)) for one in self.rows if not self.is_finished(one)]
        again = running + [Waiting(waiting.index) for waiting in self.followers]
        self.waiting += len(running)
        self.queue.extendleft(sorted(again, key=self.count_known))
        self.rows = []
        self.followers.clear()  # frees the prefixes that were held for them
        self.prefill_tokens = max(1, self.prefill_tokens // 2)
        self.cache.release()
        self.cache = SlotCache(len(self.cache.slots), self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory: continuing with at most %d answers at a time", self.limit.size)
        return finished


def count_cached(waiting: Waiting) -> int:
    """Return how many tokens of a prompt the cached prefix covers."""
    return waiting.prefix.length if waiting.prefix else 0


def find_followers(waiting: Waiting, row: int, cache: DynamicCache) -> list[Waiting]:
    """Return the prompts that share the prefix of a prompt just prefilled in `row` of a cache, with that prefix."""
    if waiting.group is None:
        return []
    length = waiting.group.length
    pairs = map(keys_and_values, cache.layers)
    part = slice(row, row + 1), slice(None), slice(length)
    prefix = Prefix(length, [(keys[part].clone(), values[part].clone()) for keys, values in pairs])
    return [Waiting(index, prefix) for index in waiting.group.members[1:]]


def join_prefixes(taken: Sequence[Waiting], longest: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each layer's keys and values of cached prefixes, padded on the left.

    Args:
        taken: prompts with a prefix each.
        longest: length of the longest prefix.

    Yields:
        Keys and values, (prompts, heads, longest, head size) each.
    """
    prefixes = [waiting.prefix.states if waiting.prefix else [] for waiting in taken]
    for layer in zip(*prefixes, strict=True):
        sides = zip(*layer, strict=True)
        keys, values = (torch.cat([pad(one, (0, 0, longest - one.shape[2], 0)) for one in side]) for side in sides)
        yield keys, values
