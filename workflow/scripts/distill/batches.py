"""Batches that grow to the memory there is and shrink when it runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch

from distill.memory import free_memory

if TYPE_CHECKING:
    from distill.slots import SlotCache

log = logging.getLogger(__name__)

Result = TypeVar("Result")
AUTO_BATCH_SIZE = {"cpu": 32, "cuda": 64}
MOST_ROWS = {"cpu": 64, "cuda": 512}  # beyond these a larger batch decodes no more tokens a second
SHARE = 0.8  # of the free memory that a growing batch may plan with


def in_batches(rows: list[int], work: Callable[[list[int]], Result], batch_size: int) -> Iterator[Result]:
    """Yield work(rows of one batch); a batch that runs out of memory is tried again in halves."""
    start = 0
    while start < len(rows):
        try:
            result = work(rows[start : start + batch_size])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            torch.cuda.empty_cache()
            batch_size //= 2
            log.warning("out of memory: going on with batches of %d", batch_size)
            continue
        yield result
        start += batch_size


class RowLimit:
    """How many answers are decoded at a time.

    Args:
        batch_size: None for a size that doubles as long as memory allows; a number stays, but for halving.
        longest: tokens of the longest prompt with its longest answer, for which room is planned.
        step_bytes: what a step takes for a row besides keys and values, in bytes.
    """

    def __init__(self, batch_size: int | None, device: torch.device, longest: int, step_bytes: int):
        self.device, self.longest, self.step_bytes = device, longest, step_bytes
        self.size = batch_size or AUTO_BATCH_SIZE[device.type]
        self.most = batch_size or max(self.size, MOST_ROWS[device.type])

    def grow(self, rows: int, cache: "SlotCache") -> int:
        """The limit, doubled before where all rows are taken and memory allows it."""
        if rows == self.size and 2 * self.size <= self.most:
            planned = cache.nbytes / (rows * cache.capacity) * self.longest
            needed = 2 * self.size * (planned + self.step_bytes) - cache.nbytes
            if needed < SHARE * free_memory(self.device):
                self.size *= 2
        return self.size

    def halve(self) -> int:
        """The limit after memory ran out; it does not grow again.

        Raises:
            torch.OutOfMemoryError: the one that is being handled, where there is nothing to halve.
        """
        if self.size == 1:
            raise  # it is called while handling one
        self.size //= 2
        self.most = self.size
        return self.size
