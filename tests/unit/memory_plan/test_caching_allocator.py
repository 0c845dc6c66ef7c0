"""The model of torch's caching allocator, against figures computed by hand from CUDACachingAllocator.cpp."""

import random

import pytest

from distill.memory_plan.caching_allocator import MIB, CachingAllocator

KIB = 1024
EXPANDABLE = pytest.mark.parametrize("expandable", [True, False], ids=["expandable", "segments"])


def allocate(allocator, **sizes):
    """Allocate blocks that are named by letters; their numbers are the letters' codes."""
    return [allocator.allocate(ord(name), size) for name, size in sizes.items()]


def free(allocator, names):
    for name in names:
        allocator.release(ord(name))


@EXPANDABLE
def test_small_blocks_share_segments_of_2_mib(expandable):
    allocator = CachingAllocator(expandable=expandable)
    allocate(allocator, a=1, b=513)  # 512 and 1,024 bytes
    assert allocator.reserved == 2 * MIB
    assert allocator.held[ord("a")].size == 512
    assert allocator.held[ord("b")].size == 1024
    allocate(allocator, c=MIB)  # the largest small block
    assert allocator.reserved == 2 * MIB
    allocate(allocator, d=MIB)  # 1 MiB less 1,536 bytes are left
    assert allocator.reserved == 4 * MIB


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (21 * MIB, 22 * MIB),
        (22 * MIB, 22 * MIB),
    ],
)
def test_the_size_of_a_segment(size, segment):
    allocator = CachingAllocator(expandable=False)
    allocator.allocate(0, size)
    assert allocator.reserved == segment


@pytest.mark.parametrize(
    ("size", "reserved"), [(MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB, 20 * MIB), (21 * MIB, 40 * MIB)]
)
def test_expandable_pools_grow_in_pages(size, reserved):
    allocator = CachingAllocator()
    allocator.allocate(0, size)
    assert allocator.reserved == reserved


def test_a_remainder_of_at_most_1_mib_is_not_split_off_a_segment():
    allocator = CachingAllocator(expandable=False)
    allocate(allocator, a=31 * MIB)  # a segment of 32 MiB
    assert allocator.held[ord("a")].size == 32 * MIB
    allocate(allocator, b=9 * MIB)  # a segment of 20 MiB, 11 of which are left
    assert allocator.held[ord("b")].size == 9 * MIB
    allocate(allocator, c=9 * MIB)
    assert allocator.reserved == 52 * MIB
    free(allocator, "abc")
    assert allocator.reserved == 52 * MIB


def test_an_expandable_pool_splits_off_every_remainder():
    allocator = CachingAllocator()
    allocate(allocator, a=31 * MIB, b=9 * MIB)
    assert allocator.reserved == 40 * MIB
    assert allocator.held[ord("a")].size == 31 * MIB


@EXPANDABLE
def test_the_smallest_free_block_that_is_large_enough_is_used_again(expandable):
    allocator = CachingAllocator(expandable=expandable)
    allocate(allocator, a=400 * KIB, x=512, b=300 * KIB, y=512, c=500 * KIB, z=512)
    starts = {name: allocator.held[ord(name)].start for name in "abc"}
    free(allocator, "abc")
    allocate(allocator, d=400 * KIB, e=200 * KIB)
    assert allocator.held[ord("d")].start == starts["a"]
    assert allocator.held[ord("e")].start == starts["b"]
    assert allocator.reserved == 2 * MIB


@EXPANDABLE
def test_free_neighbours_are_merged(expandable):
    allocator = CachingAllocator(expandable=expandable)
    allocate(allocator, a=40 * MIB) if expandable else allocate(allocator, a=20 * MIB)
    free(allocator, "a")
    reserved = allocator.reserved
    allocate(allocator, b=6 * MIB, c=6 * MIB, d=6 * MIB)
    free(allocator, "bdc")
    allocate(allocator, e=18 * MIB)  # none of the three is large enough alone
    assert allocator.reserved == reserved
    assert allocator.held[ord("e")].start == 0


@EXPANDABLE
def test_growing_by_a_little_fragments_segments(expandable):
    """A cache that is copied to a larger one, 32 times: only an expandable pool uses the old ones' memory again."""
    allocator = CachingAllocator(expandable=expandable)
    allocator.allocate(0, 64 * MIB)
    for number in range(1, 33):
        assert allocator.allocate(number, (64 + 2 * number) * MIB)
        allocator.release(number - 1)
    # An expandable pool holds three copies in a row, the last ones with 124, 126 and 128 MiB: 19 pages. With segments,
    # every copy is larger than all segments before it.
    assert allocator.reserved == (380 * MIB if expandable else sum(range(64, 130, 2)) * MIB)


@EXPANDABLE
def test_unused_memory_is_returned_when_there_is_no_more(expandable):
    allocator = CachingAllocator(room=100 * MIB, expandable=expandable)
    allocate(allocator, a=60 * MIB, s=KIB)
    free(allocator, "a")
    assert allocator.reserved == 62 * MIB
    # Of a pool's 60 MiB the expandable one needs 20 MiB more; the segment must be returned first.
    assert allocate(allocator, b=80 * MIB) == [True]
    assert allocator.reserved == 82 * MIB
    assert allocator.peak == 82 * MIB
    assert allocate(allocator, c=20 * MIB) == [False]
    free(allocator, "b")
    assert allocate(allocator, d=20 * MIB) == [True]


def test_a_segment_in_use_is_not_returned():
    allocator = CachingAllocator(room=60 * MIB, expandable=False)
    allocate(allocator, a=30 * MIB, b=30 * MIB)
    free(allocator, "a")
    allocate(allocator, c=2 * MIB)  # in the free segment of 30 MiB
    assert allocate(allocator, d=30 * MIB) == [False]
    free(allocator, "c")
    assert allocate(allocator, e=30 * MIB) == [True]


def test_whole_pages_of_an_expandable_pool_are_returned_and_mapped_elsewhere():
    allocator = CachingAllocator(room=100 * MIB)
    allocate(allocator, a=30 * MIB, b=50 * MIB, c=20 * MIB)
    free(allocator, "b")  # addresses from 30 to 80 MiB: the pages from 40 to 80 are whole
    assert allocate(allocator, d=51 * MIB) == [False]
    assert allocator.reserved == 60 * MIB
    assert allocator.peak == 100 * MIB
    # 10 MiB are still free before the returned pages, which are the lowest addresses to map to.
    assert allocate(allocator, e=50 * MIB) == [True]
    assert allocator.held[ord("e")].start == 30 * MIB
    assert allocator.reserved == 100 * MIB


def test_a_gap_that_is_too_small_is_left_and_the_pool_grows_at_its_end():
    allocator = CachingAllocator(room=120 * MIB)
    allocate(allocator, a=40 * MIB, b=20 * MIB, c=40 * MIB)
    free(allocator, "b")
    # 20 more MiB: the 20 MiB between are returned, and 40 mapped behind c.
    assert allocate(allocator, d=40 * MIB) == [True]
    assert allocator.held[ord("d")].start == 100 * MIB
    assert allocator.reserved == 120 * MIB
    free(allocator, "a")
    assert allocate(allocator, e=60 * MIB) == [False]
    free(allocator, "d")
    assert allocate(allocator, f=60 * MIB) == [True]
    assert allocator.held[ord("f")].start == 0  # the gap is mapped again


def test_a_block_that_can_grow_is_left_for_larger_ones():
    allocator = CachingAllocator()
    allocate(allocator, a=4 * MIB, b=30 * MIB, c=1 * MIB + 512)  # 4,979 KiB are free at the end
    free(allocator, "b")
    allocate(allocator, d=3 * MIB)  # fits the end, but the 30 MiB between cannot grow
    assert allocator.held[ord("d")].start == 4 * MIB


def test_a_pool_of_which_everything_was_returned_starts_again():
    allocator = CachingAllocator(room=40 * MIB)
    allocate(allocator, a=40 * MIB)
    free(allocator, "a")
    assert allocate(allocator, s=KIB) == [True]
    assert allocator.reserved == 2 * MIB
    assert allocate(allocator, b=20 * MIB) == [True]
    assert allocator.reserved == 22 * MIB
    assert allocator.held[ord("b")].start == 0


@EXPANDABLE
def test_a_replay_says_whether_everything_fits(expandable):
    events = [(0, 30 * MIB), (1, 30 * MIB), (0, 0), (2, 40 * MIB), (1, 0), (2, 0)]
    allocator = CachingAllocator(expandable=expandable)
    assert allocator.replay(events)
    assert allocator.peak == 100 * MIB
    assert CachingAllocator(100 * MIB, expandable).replay(events)
    # The first segment can be returned, but of its 30 MiB only one page of 20.
    least = 80 * MIB if expandable else 70 * MIB
    assert CachingAllocator(least, expandable).replay(events)
    assert not CachingAllocator(least - 2 * MIB, expandable).replay(events)


def check(allocator):
    """Blocks tile their segments or addresses, free neighbours are merged, and the figures add up."""
    blocks = {id(block): block for block in [*allocator.held.values(), *allocator.blocks.values()]}
    blocks |= {id(block): block for pool in allocator.unmapped.values() for block in pool}
    for block in blocks.values():
        if after := block.after:
            assert id(after) in blocks
            assert (after.before, after.start) == (block, block.start + block.size)
            assert not (block.is_free and after.is_free and block.is_mapped == after.is_mapped)
    assert sum(block.size for block in blocks.values() if block.is_mapped) == allocator.reserved
    for is_small, pool in allocator.free.items():
        assert pool == sorted(
            (block.size, start) for start, block in allocator.blocks.items() if block.is_small == is_small
        )
    assert not any(block.is_free for block in allocator.held.values())


@EXPANDABLE
@pytest.mark.parametrize("seed", range(5))
def test_random_sequences_keep_the_blocks_in_order(expandable, seed):
    numbers = random.Random(seed)
    allocator = CachingAllocator(room=600 * MIB, expandable=expandable)
    refused = 0
    for number in range(1500):
        size = numbers.choice([numbers.randrange(1, 2 * MIB), numbers.randrange(MIB, 60 * MIB)])
        if not allocator.allocate(number, size):
            refused += 1
        while allocator.held and numbers.random() < 0.5:
            allocator.release(numbers.choice(list(allocator.held)))
        check(allocator)
        assert allocator.reserved <= 600 * MIB
    assert refused
    for number in list(allocator.held):
        allocator.release(number)
    allocator.return_unused()
    check(allocator)
    assert allocator.reserved == 0
