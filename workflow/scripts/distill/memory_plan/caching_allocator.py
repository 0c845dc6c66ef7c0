"""torch's caching allocator on CUDA: what it reserves from the driver for a sequence of allocations.

It follows c10/cuda/CUDACachingAllocator.cpp of torch 2.13 on one stream. Blocks are rounded to 512 bytes; blocks up to
1 MiB and larger ones have pools of their own; the smallest free block that is large enough is taken, and split. Without
a free block the driver is asked for a segment or, with `expandable_segments:True`, for pages: the pool then has a
single range of addresses, of which the pages in use are mapped.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from distill.memory_plan.live_memory import Event

MIB = 2**20
ROUNDING = 512
LARGEST_SMALL = MIB  # largest block of the small pool
PAGE = {True: 2 * MIB, False: 20 * MIB}  # segments and pages of the small pool and of the other
LEAST_OWN = 10 * MIB  # blocks from this size on get a segment of their own size, rounded to 2 MiB
ADDRESSES = 2**20 * PAGE[False]  # addresses of an expandable pool, more than any GPU has memory for


@dataclass(eq=False)
class Block:
    """A part of a segment, or of the addresses of an expandable pool.

    Attributes:
        start: its address.
        size: bytes.
        is_small: its pool.
        is_free: whether no allocation holds it.
        is_mapped: whether it has memory of the driver.
        before, after: its neighbours.
    """

    start: int
    size: int
    is_small: bool
    is_free: bool = False
    is_mapped: bool = True
    before: "Block | None" = None
    after: "Block | None" = None

    @property
    def reach(self) -> int:
        """Bytes with the addresses behind it that pages can be mapped to."""
        return self.size + (self.after.size if self.after and not self.after.is_mapped else 0)


class CachingAllocator:
    """An allocator that has a device for itself.

    Args:
        room: bytes that the driver can give; None without limit.
        expandable: whether `expandable_segments:True` is set.

    Attributes:
        reserved: bytes taken from the driver.
        peak: the most that was reserved.
    """

    def __init__(self, room: int | None = None, expandable: bool = True):
        self.room, self.expandable = room, expandable
        self.reserved = self.peak = 0
        self.free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # (size, address) of free blocks, by pool
        self.blocks: dict[int, Block] = {}  # the free ones, by address
        self.held: dict[int, Block] = {}  # by number of the allocation
        self.end = 0  # first address that no segment has had
        self.unmapped: dict[bool, list[Block]] = {True: [], False: []}  # addresses without memory, in their order
        if expandable:
            for is_small, unmapped in self.unmapped.items():
                unmapped.append(Block(ADDRESSES * is_small, ADDRESSES, is_small, is_free=True, is_mapped=False))

    def replay(self, events: Iterable[Event]) -> bool:
        """Allocate and free in order; return whether all of it fits."""
        for number, size in events:
            if not size:
                self.release(number)
            elif not self.allocate(number, size):
                return False
        return True

    def allocate(self, number: int, size: int) -> bool:
        """Allocate; return False if the driver has no more memory, even after it has got back what is unused."""
        size = max(ROUNDING, -(-size // ROUNDING) * ROUNDING)
        is_small = size <= LARGEST_SMALL
        block = self.find_free(size, is_small) or self.reserve(size, is_small)
        if block is None:
            self.return_unused()
            block = self.reserve(size, is_small)
        if block is None:
            return False
        self.split(block, size)
        self.held[number] = block
        return True

    def release(self, number: int) -> None:
        """Free an allocation; its block is merged with free neighbours."""
        self.put_back(self.held.pop(number))

    # ---- Free blocks ----

    def put_back(self, block: Block) -> None:
        """Make a block free, together with the free blocks beside it."""
        for other in (block.before, block.after):
            if other and other.is_free and other.is_mapped:
                self.take_out(other)
                merge(block, other)
        block.is_free = True
        self.blocks[block.start] = block
        insort(self.free[block.is_small], (block.size, block.start))

    def take_out(self, block: Block) -> None:
        """Take a block out of the free ones."""
        pool = self.free[block.is_small]
        del pool[bisect_left(pool, (block.size, block.start))], self.blocks[block.start]
        block.is_free = False

    def find_free(self, size: int, is_small: bool) -> Block | None:
        """Take the smallest free block that is large enough; a block that can still grow counts as large as it can."""
        pool = self.free[is_small]
        place = bisect_left(pool, (size, 0))
        if place == len(pool):
            return None
        block = self.blocks[pool[place][1]]
        while place + 1 < len(pool) and (other := self.blocks[pool[place + 1][1]]).reach < block.reach:
            block, place = other, place + 1
        self.take_out(block)
        return block

    def split(self, block: Block, size: int) -> None:
        """Free the end of a block beyond `size` bytes, if it is worth a block."""
        rest = block.size - size
        if rest >= ROUNDING and (block.is_small or self.expandable or rest > LARGEST_SMALL):
            self.put_back(cut(block, size))

    # ---- The driver ----

    def reserve(self, size: int, is_small: bool) -> Block | None:
        """Take memory for a block from the driver; None if there is not enough."""
        if self.expandable:
            return self.expand(size, is_small)
        segment = PAGE[is_small] if size < LEAST_OWN else -(-size // PAGE[True]) * PAGE[True]
        if not self.take(segment):
            return None
        self.end += segment
        return Block(self.end - segment, segment, is_small)

    def expand(self, size: int, is_small: bool) -> Block | None:
        """Map pages at the lowest addresses where a block fits, together with the free blocks there."""
        block: Block | None = self.find_addresses(size, is_small)
        while block and (not block.is_mapped or block.size < size):
            behind = block.after if block.is_mapped else block
            missing = size - (block.size if block.is_mapped else 0)
            block = self.map(behind, missing) if behind else None
        if block:
            self.take_out(block)
        return block

    def find_addresses(self, size: int, is_small: bool) -> Block:
        """The first of the lowest free blocks and addresses without memory that together have `size` bytes."""
        for first in self.unmapped[is_small]:
            start = first.before if first.before and first.before.is_free else first
            found = 0
            block: Block | None = start
            while block and block.is_free and found < size:
                found += block.size
                block = block.after
            if found >= size:
                return start
        raise MemoryError(f"expected fewer than {ADDRESSES} bytes of addresses in use")

    def map(self, block: Block, size: int) -> Block | None:
        """Map pages at the start of addresses without memory; return the free block with them, None without memory."""
        page = PAGE[block.is_small]
        size = min(-(-size // page) * page, block.size)
        if not self.take(size):
            return None
        self.unmapped[block.is_small].remove(block)
        if size < block.size:
            rest = cut(block, size)
            rest.is_free, rest.is_mapped = True, False
            insort(self.unmapped[block.is_small], rest, key=lambda one: one.start)
        block.is_mapped = True
        self.put_back(block)
        return block

    def take(self, size: int) -> bool:
        """Count bytes taken from the driver, if it has them."""
        if self.room is not None and self.reserved + size > self.room:
            return False
        self.reserved += size
        self.peak = max(self.peak, self.reserved)
        return True

    def return_unused(self) -> None:
        """Return free segments to the driver, or with expandable segments the whole pages within free blocks."""
        for pool in self.free.values():
            for _, start in list(pool):
                block = self.blocks[start]
                if self.expandable:
                    self.unmap(block)
                elif block.before is None and block.after is None:
                    self.take_out(block)
                    self.reserved -= block.size

    def unmap(self, block: Block) -> None:
        """Return the whole pages of a free block to the driver; what lies before and behind them stays free."""
        page = PAGE[block.is_small]
        first = -(-block.start // page) * page
        size = (block.start + block.size) // page * page - first
        if size <= 0:
            return
        self.take_out(block)
        middle = cut(block, first - block.start) if first > block.start else block
        if middle is not block:
            self.put_back(block)
        if middle.size > size:
            self.put_back(cut(middle, size))
        middle.is_free, middle.is_mapped = True, False
        self.reserved -= size
        unmapped = self.unmapped[middle.is_small]
        for other in (middle.before, middle.after):
            if other and not other.is_mapped:
                unmapped.remove(other)
                merge(middle, other)
        insort(unmapped, middle, key=lambda one: one.start)


def cut(block: Block, size: int) -> Block:
    """Shorten a block to `size` bytes; return its end as a block that is in use."""
    end = Block(block.start + size, block.size - size, block.is_small, before=block, after=block.after)
    if block.after:
        block.after.before = end
    block.after, block.size = end, size
    return end


def merge(block: Block, other: Block) -> None:
    """Add a neighbour to a block."""
    block.size += other.size
    if other is block.before:
        block.start, block.before = other.start, other.before
        if block.before:
            block.before.after = block
    else:
        block.after = other.after
        if block.after:
            block.after.before = block
