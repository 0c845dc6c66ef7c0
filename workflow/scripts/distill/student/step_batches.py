"""Which records an optimizer step has, and how they are dealt into micro-batches."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

MEGA_STEPS = 16  # optimizer steps among which records are sorted with `group_by_length`


class StepBatches:
    """Batch sampler: the micro-batches of this process, lists of indices; some of a last step may be empty.

    The records of a step depend on seed and epoch alone, not on how they are split into micro-batches or how many
    processes there are. Within a step they are sorted by length, so that little is padded, the longest first.

    Args:
        lengths: tokens of each example.
        batch_size: most examples in a micro-batch.
        accumulation: micro-batches an optimizer step, of all processes together.
        group: steps of examples of similar length, in random order.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        group: bool = False,
    ):
        self.lengths, self.batch_size, self.seed, self.group = lengths, batch_size, seed, group
        self.rank, self.processes = rank, processes
        self.step_records = batch_size * accumulation
        self.micro_batches = math.ceil(accumulation / processes)  # of this process, a step
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return math.ceil(len(self.lengths) / self.step_records)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0."""
        self.epoch = epoch

    def by_length(self, indices: Sequence[int]) -> list[int]:
        """The longest first."""
        return sorted(indices, key=lambda index: -self.lengths[index])

    def steps(self, epoch: int) -> list[list[int]]:
        """The records of each optimizer step of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.step_records
        if self.group:
            mega = size * MEGA_STEPS
            order = [index for at in range(0, len(order), mega) for index in self.by_length(order[at : at + mega])]
        steps = [order[at : at + size] for at in range(0, len(order), size)]
        if self.group:
            whole = torch.randperm(len(order) // size, generator=generator).tolist()
            steps = [steps[index] for index in whole] + steps[len(whole) :]
        return [self.by_length(step) for step in steps]

    def deal(self, step: Sequence[int]) -> list[list[int]]:
        """A step's micro-batches of this process."""
        slots = self.micro_batches * self.processes
        count = math.ceil(len(step) / self.batch_size) if self.processes == 1 else min(slots, len(step))
        size = math.ceil(len(step) / count)
        batches = [list(step[at : at + size]) for at in range(0, len(step), size)]
        return [*batches, *([] for _ in range(slots - len(batches)))][self.rank :: self.processes]

    def find_step(self, step: int) -> list[int]:
        """The records of this process in an optimizer step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return [index for batch in self.deal(self.steps(epoch)[place]) for index in batch]

    def __len__(self) -> int:
        return self.steps_per_epoch * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps(self.epoch):
            yield from self.deal(step)


class EpochLoader(DataLoader):
    """Lists of examples, by a StepBatches; the Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """See StepBatches."""
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)
