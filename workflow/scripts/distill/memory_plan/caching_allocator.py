"""torch's caching allocator on CUDA: what it reserves from the driver for a sequence of allocations.

It follows c10/cuda/CUDACachingAllocator.cpp of torch 2.13 on one stream. Blocks are rounded to 512 bytes; blocks up to
1 MiB and larger ones have pools of their own; the smallest free block that is large enough is taken, and split. Without
a free block the driver is asked for a segment, or, with `expandable_segments:True`, for pages at the end of the pool's
only segment.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from distill.memory_plan.live_memory import Event

MIB = 2**20
ROUNDING = 512
LARGEST_SMALL = MIB  # largest block of the small pool
PAGE = {True: 2 * MIB, False: 20 * MIB}  # segments and pages of the small pool and of the other
LARGEST_SHARED = 10 * MIB  # larger blocks get a segment of their own size, rounded to 2 MiB


@dataclass
class Block:
    """A part of a segment.

    Attributes:
        size: bytes.
        is_small: its pool.
        before, after: its neighbours in the segment.
    """

    size: int
    is_small: bool
    before: "Block | None" = None
    after: "Block | None" = None
    is_free: bool = True
    number: int = 0


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
        self.free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # (size, number of the block) by is_small
        self.blocks: dict[int, Block] = {}  # the free ones, by number
        self.count = 0
        self.ends: dict[bool, Block] = {}  # last block of the expandable segments
        self.held: dict[int, Block] = {}  # by number of the allocation

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
        block = self.held.pop(number)
        for other in (block.before, block.after):
            if other is None or not other.is_free:
                continue
            self.take_out(other)
            block.size += other.size
            if other is block.before:
                block.before = other.before
                if other.before:
                    other.before.after = block
            else:
                block.after = other.after
                if other.after:
                    other.after.before = block
                elif self.ends.get(block.is_small) is other:
                    self.ends[block.is_small] = block
        self.put_back(block)

    # ---- Free blocks ----

    def put_back(self, block: Block) -> None:
        """Make a block free."""
        if not block.number:
            self.count += 1
            block.number = self.count
        block.is_free = True
        self.blocks[block.number] = block
        insort(self.free[block.is_small], (block.size, block.number))

    def take_out(self, block: Block) -> None:
        """Take a block out of the free ones."""
        pool = self.free[block.is_small]
        del pool[bisect_left(pool, (block.size, block.number))], self.blocks[block.number]
        block.is_free = False

    def find_free(self, size: int, is_small: bool) -> Block | None:
        """Take the smallest free block that is large enough."""
        pool = self.free[is_small]
        place = bisect_left(pool, (size, 0))
        if place == len(pool):
            return None
        block = self.blocks[pool[place][1]]
        self.take_out(block)
        return block

    def split(self, block: Block, size: int) -> None:
        """Free the end of a block beyond `size` bytes, if it is worth a block."""
        rest = block.size - size
        if rest < ROUNDING or not (block.is_small or self.expandable or rest > LARGEST_SMALL):
            return
        end = Block(rest, block.is_small, before=block, after=block.after)
        if block.after:
            block.after.before = end
        elif self.ends.get(block.is_small) is block:
            self.ends[block.is_small] = end
        block.after, block.size = end, size
        self.put_back(end)

    # ---- The driver ----

    def reserve(self, size: int, is_small: bool) -> Block | None:
        """Take memory for a block from the driver; None if there is not enough."""
        if not self.expandable:
            segment = PAGE[is_small] if size <= LARGEST_SHARED else -(-size // PAGE[True]) * PAGE[True]
            return Block(segment, is_small, is_free=False) if self.take(segment) else None
        end = self.ends.get(is_small)
        kept = end.size if end and end.is_free else 0
        page = PAGE[is_small]
        missing = -(-(size - kept) // page) * page
        if not self.take(missing):
            return None
        if end and end.is_free:
            self.take_out(end)
            end.size += missing
            return end
        block = Block(missing, is_small, before=end, is_free=False)
        if end:
            end.after = block
        self.ends[is_small] = block
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
        for is_small, pool in self.free.items():
            for _, number in list(pool):
                block = self.blocks[number]
                if self.expandable:
                    self.unmap(block, block.size // PAGE[is_small] * PAGE[is_small])
                elif block.before is None and block.after is None:
                    self.take_out(block)
                    self.reserved -= block.size

    def unmap(self, block: Block, size: int) -> None:
        """Return pages of a free block; the block keeps the rest, and the addresses between are not used again."""
        if not size:
            return
        self.take_out(block)
        self.reserved -= size
        block.size -= size
        if block.size:
            self.put_back(block)
            return
        if block.before:
            block.before.after = block.after
        if block.after:
            block.after.before = block.before
        elif self.ends.get(block.is_small) is block:
            if block.before:
                self.ends[block.is_small] = block.before
            else:
                del self.ends[block.is_small]
