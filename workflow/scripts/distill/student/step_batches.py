"""The records of each optimizer step, split into micro-batches."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from distill.models.example_table import Example, get_lengths
from distill.models.packing import pack

GROUPED_STEPS = 16  # optimizer steps whose records are sorted together with `group_by_length`


class StepBatches:
    """Batch sampler that yields the micro-batches of this rank as lists of indices.

    The records of a step depend on seed and epoch only, not on the number of micro-batches or ranks. A step is sorted
    by length, longest first, to reduce padding. Micro-batches of the last step of an epoch may be empty.

    Args:
        lengths: tokens of each example.
        batch_size: maximum number of examples in a micro-batch.
        accumulation: micro-batches per optimizer step, over all ranks.
        seed: seed of the order.
        rank: rank of this process.
        ranks: number of ranks.
        group: whether a step consists of examples of similar length; the steps are in random order.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        accumulation: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        group: bool = False,
    ):
        self.lengths, self.batch_size, self.seed, self.group = lengths, batch_size, seed, group
        self.rank, self.ranks = rank, ranks
        self.step_records = batch_size * accumulation
        self.micro_batches = math.ceil(accumulation / ranks)  # per step, of this rank
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(len(self.lengths) / self.step_records)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, whose order is iterated."""
        self.epoch = epoch

    def sort_by_length(self, indices: Sequence[int]) -> list[int]:
        """The indices, longest example first."""
        return sorted(indices, key=lambda index: -self.lengths[index])

    def steps(self, epoch: int) -> list[list[int]]:
        """The records of each optimizer step of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.step_records
        if self.group:
            span = size * GROUPED_STEPS
            parts = [order[at : at + span] for at in range(0, len(order), span)]
            order = [index for part in parts for index in self.sort_by_length(part)]
        steps = [order[at : at + size] for at in range(0, len(order), size)]
        if self.group:
            shuffled = torch.randperm(len(order) // size, generator=generator).tolist()
            steps = [steps[index] for index in shuffled] + steps[len(shuffled) :]  # a last short step stays last
        return [self.sort_by_length(step) for step in steps]

    def split_step(self, step: Sequence[int]) -> list[list[int]]:
        """The micro-batches of this rank in a step."""
        slots = self.micro_batches * self.ranks
        count = math.ceil(len(step) / self.batch_size) if self.ranks == 1 else min(slots, len(step))
        size = math.ceil(len(step) / count)
        batches = [list(step[at : at + size]) for at in range(0, len(step), size)]
        return [*batches, *([] for _ in range(slots - len(batches)))][self.rank :: self.ranks]

    def find_step(self, step: int) -> list[int]:
        """The records of this rank in an optimizer step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return [index for batch in self.split_step(self.steps(epoch)[place]) for index in batch]

    def __len__(self) -> int:
        return self.steps_per_epoch * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps(self.epoch):
            yield from self.split_step(step)


def pack_step(examples: Sequence[Example], row_length: int, rows: int) -> list[list[Example]]:
    """The micro-batches of a step whose records share rows; `collate` packs each of them into the same rows again.

    Args:
        examples: the records of this rank.
        row_length: maximum number of tokens in a row.
        rows: maximum number of rows in a micro-batch.
    """
    packed = pack([len(example["prompt"]) + len(example["completion"]) for example in examples], row_length)
    return [[examples[index] for row in packed[at : at + rows] for index in row] for at in range(0, len(packed), rows)]


class EpochLoader(DataLoader):
    """Data loader over the lists of examples of a StepBatches; the Trainer sets the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """See `StepBatches.set_epoch`."""
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


def split_validation(examples: Sequence[Example], size: int, rank: int, ranks: int) -> Iterator[list[Example]]:
    """The validation batches of a rank; all ranks have the same number, so some may be empty.

    Args:
        examples: the validation split.
        size: maximum number of examples in a batch.
        rank: rank of this process.
        ranks: number of ranks.
    """
    rounds = math.ceil(len(examples) / (size * ranks))
    lengths = get_lengths(examples, "prompt", "completion")
    for indices in StepBatches(lengths, size, rounds * ranks, 0, rank, ranks):
        yield [examples[index] for index in indices]
