"""The records of each step, and their split into micro-batches and ranks."""

import random

import pytest
import torch

from distill.models.completions import collate
from distill.student.step_batches import EpochLoader, StepBatches


def draw_lengths(count, low, high):
    source = random.Random(1)
    return [source.randrange(low, high) for _ in range(count)]


LENGTHS = draw_lengths(43, 5, 90)


def epoch_of(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_contains_every_record_once(group, epoch):
    batches = StepBatches(LENGTHS, 4, 2, seed=3, group=group)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(epoch_of(found)) == list(range(43))
    assert len(found) == len(batches) == batches.steps_per_epoch * 2
    assert max(map(len, found)) <= 4


def test_the_order_depends_on_epoch_and_seed_only():
    one, other = StepBatches(LENGTHS, 4, 2, seed=3), StepBatches(LENGTHS, 4, 2, seed=4)
    first = list(one)
    assert first == list(StepBatches(LENGTHS, 4, 2, seed=3))
    assert first != list(other)
    one.set_epoch(1)
    assert first != list(one)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_the_records_of_a_step_do_not_depend_on_its_split(count, size, accumulation):
    wanted = [set(step) for step in StepBatches(LENGTHS, 8, 1, seed=5).steps(0)]
    ranks = [list(StepBatches(LENGTHS, size, accumulation, 5, rank, count)) for rank in range(count)]
    assert len({len(batches) for batches in ranks}) == 1  # collective operations need the same number on all ranks
    micro = StepBatches(LENGTHS, size, accumulation, 5, 0, count).micro_batches
    for number, step in enumerate(wanted):
        parts = [batches[number * micro : (number + 1) * micro] for batches in ranks]
        found = [index for batches in parts for batch in batches for index in batch]
        assert sorted(found) == sorted(step)
        assert all(len(batch) <= size for batches in parts for batch in batches)


def test_ranks_split_a_step_evenly():
    ranks = [list(StepBatches(LENGTHS[:32], 8, 1, 5, rank, 4)) for rank in range(4)]
    assert {len(batch) for batches in ranks for batch in batches} == {2}


def padded(batches, lengths):
    """Share of a micro-batch's tokens that are padding."""
    whole = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches if batch)
    return 1 - sum(lengths[index] for index in epoch_of(batches)) / whole


def test_sorting_by_length_reduces_padding():
    lengths = draw_lengths(512, 50, 1000)
    in_steps = padded(list(StepBatches(lengths, 2, 8, 1)), lengths)
    grouped = padded(list(StepBatches(lengths, 8, 1, 1, group=True)), lengths)
    loose = padded([list(range(at, at + 8)) for at in range(0, 512, 8)], lengths)
    assert in_steps < 0.06
    assert grouped < 0.06
    assert loose > 0.3


def test_the_longest_records_of_a_step_come_first():
    for step in StepBatches(LENGTHS, 4, 4, 1).steps(0):
        assert [LENGTHS[index] for index in step] == sorted((LENGTHS[index] for index in step), reverse=True)


def test_find_step_matches_iteration():
    batches = StepBatches(LENGTHS, 4, 2, seed=3)
    batches.set_epoch(2)
    mine = list(batches)
    for place in range(batches.steps_per_epoch):
        assert batches.find_step(2 * batches.steps_per_epoch + place) == epoch_of(mine[2 * place : 2 * place + 2])


def test_the_loader_sets_the_epoch_of_its_sampler():
    loader = EpochLoader(list(range(43)), batch_sampler=StepBatches(LENGTHS, 4, 1, 3), collate_fn=list)
    first = list(loader)
    loader.set_epoch(1)
    assert first != list(loader)


def test_padding_is_on_the_right_and_positions_precede_their_targets():
    batch = collate([[5, 6], [7]], [[8], [9, 10, 11]], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 8, 0], [7, 9, 10, 11]]
    assert batch["positions"].tolist() == [1, 4, 5, 6]
    assert batch["targets"].tolist() == [8, 9, 10, 11]


def test_a_batch_without_completions_has_no_positions():
    batch = collate([[5, 6]], [[]], pad_id=0)
    assert batch["positions"].numel() == batch["targets"].numel() == 0
    assert batch["targets"].dtype == torch.long
