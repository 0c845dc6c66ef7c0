"""Work in batches that shrink when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Result = TypeVar("Result")
AUTO_BATCH_SIZE = {"cpu": 32, "cuda": 64}


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
