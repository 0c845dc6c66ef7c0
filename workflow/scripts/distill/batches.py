"""Batches that grow to the memory there is and shrink when it runs out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from distill.memory import free_memory

if TYPE_CHECKING:
    from distill.slots import SlotCache

log = logging.getLogger(__name__)

Result = TypeVar("Result")
AUTO_BATCH_SIZE = {"cpu": 32, "cuda": 64}
MOST_ROWS = {"cpu": 64, "cuda": 512}
SHARE = 0.8  # of the free memory that a growing batch may plan with


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out; on a CPU torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_batches(rows: list[int], work: Callable[[list[int]], Result], batch_size: int) -> Iterator[Result]:
    """Yield work(rows of one batch); a batch that runs out of memory is tried again in halves."""
    start = 0
    while start < len(rows):
        try:
            result = work(rows[start : start + batch_size])
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
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
        devices: that hold the model's layers; the first one computes when there is no GPU.
        row_bytes: what the longest prompt with its longest answer takes, in bytes: keys and values, and a step.
    """

    def __init__(self, batch_size: int | None, devices: Sequence[torch.device], row_bytes: int):
        self.devices, self.row_bytes = devices, row_bytes
        kind = devices[0].type
        fits = max(1, int(SHARE * self.free()) // max(row_bytes, 1))
        self.size = batch_size or min(AUTO_BATCH_SIZE[kind], fits)
        self.most = batch_size or MOST_ROWS[kind]

    def free(self) -> int:
        """Bytes that are free on all devices together."""
        return sum(map(free_memory, self.devices))

    def grow(self, rows: int, cache: "SlotCache") -> int:
        """The limit, doubled before where all rows are taken and memory allows it."""
        if rows == self.size and 2 * self.size <= self.most:
            needed = 2 * self.size * self.row_bytes - cache.nbytes
            if needed < SHARE * self.free():
                self.size *= 2
        return self.size

    def halve(self) -> bool:
        """Halve the limit, for good, after memory ran out; False where there is nothing to halve."""
        if self.size == 1:
            return False
        self.size //= 2
        self.most = self.size
        return True
