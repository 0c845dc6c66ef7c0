"""Batches that are halved when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
AUTO_BATCH_SIZE = {"cpu": 32, "cuda": 64}  # first batch size with `batch_size: auto`


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; on a CPU, torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_batches(rows: list[int], work: Callable[[list[int]], Result], batch_size: int) -> Iterator[Result]:
    """Yield `work(batch)` for consecutive batches of rows.

    If a batch runs out of memory, it is retried with half the batch size, which then applies to all further batches.
    """
    start = 0
    while start < len(rows):
        try:
            result = work(rows[start : start + batch_size])
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            batch_size //= 2
            logger.warning("out of memory: continuing with batches of %d", batch_size)
            continue
        yield result
        start += batch_size
