"""Batches that are halved when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# What errors other than torch.OutOfMemoryError say: a CPU's allocator, the CUDA driver, and libraries that allocate.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
AUTO_BATCH_SIZE = {"cpu": 32, "cuda": 64}  # first batch size with `batch_size: auto`


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def in_batches(rows: list[int], work: Callable[[list[int]], Result], batch_size: int) -> Iterator[Result]:
    """Yield `work(batch)` for consecutive batches of rows.

    If a batch runs out of memory, it is retried with half the batch size, which then applies to all further batches.
    """
    start = 0
    while start < len(rows):
        is_full = False
        try:
            result = work(rows[start : start + batch_size])
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            is_full = True
        # Outside the except block: the traceback holds references to what the failed batch allocated.
        if is_full:
            torch.cuda.empty_cache()
            batch_size //= 2
            logger.warning("out of memory: continuing with batches of %d", batch_size)
        else:
            yield result
            start += batch_size
