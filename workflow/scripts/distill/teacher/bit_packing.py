"""Whole numbers in as few bits as their range needs: rows of fixed size, packed and unpacked by vectorised operations.

Bits are numbered from the least significant bit of the first byte.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from distill.teacher.signal_size import MAX_BITS, count_bytes, split_bits


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack each row without gaps between its numbers.

    Args:
        values: (rows, n) whole numbers from 0 to 2^bits − 1.
        bits: bits of a number, at most MAX_BITS.

    Returns:
        (rows, `count_bytes(n, bits)`) uint8.

    Raises:
        ValueError: a number is out of range, or `bits` is.
    """
    count, touched = values.shape[-1], count_touched(bits)
    check_range(values, bits)
    offsets = torch.arange(count) * bits
    shifted = values.int() << (offsets % 8).int()
    packed = torch.zeros(len(values), count_bytes(count, bits) + touched, dtype=torch.int32)
    for byte in range(touched):  # numbers share bytes, but no bits: adding them is joining them
        packed.index_add_(1, offsets // 8 + byte, (shifted >> 8 * byte) & 255)
    return packed[:, : count_bytes(count, bits)].to(torch.uint8)


def unpack_bits(packed: Tensor, count: int, bits: int) -> Tensor:
    """Return the (rows, count) int32 numbers of `pack_bits`."""
    touched = count_touched(bits)
    offsets = torch.arange(count) * bits
    padded = pad(packed, (0, touched)).int()
    words = torch.zeros(len(packed), count, dtype=torch.int32)
    for byte in range(touched):
        words |= padded[:, offsets // 8 + byte] << 8 * byte
    return (words >> (offsets % 8).int()) & (2**bits - 1)


def check_range(values: Tensor, bits: int) -> None:
    """Check that numbers fit into their bits.

    Raises:
        ValueError: one does not.
    """
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < 2**bits:
        raise ValueError(f"expected numbers from 0 to {2**bits - 1}, found {int(values.min())} to {int(values.max())}")


def count_touched(bits: int) -> int:
    """Return the number of bytes that a number may lie in, whatever bit it begins at."""
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"expected at most {MAX_BITS} bits, found {bits}")
    return (bits + 14) // 8


def pack_ascending(values: Tensor, bits: int) -> Tensor:
    """Pack rows of ascending numbers by the code of Elias and Fano (Elias 1974; Fano 1971).

    The lower bits of each number are packed as they are. The upper bits h of number i set bit h + i of a bit map. In
    all, n numbers take about n · (2 + log2(2^bits / n)) bits, close to the least that is possible.

    Args:
        values: (rows, n) whole numbers from 0 to 2^bits − 1, ascending within a row; they may repeat.
        bits: bits of a number, at most MAX_BITS.

    Returns:
        (rows, `count_ascending_bytes(n, bits)`) uint8.

    Raises:
        ValueError: a number is out of range, or a row is not ascending.
    """
    if (values[:, 1:] < values[:, :-1]).any():
        raise ValueError("expected ascending numbers, found others")
    check_range(values, bits)
    count = values.shape[-1]
    low, marks = split_bits(count, bits)
    lower = pack_bits(values & (2**low - 1), low)
    places = (values >> low).long() + torch.arange(count)
    upper = torch.zeros(len(values), marks, dtype=torch.int32).scatter_(1, places, 1)
    return torch.cat([lower, pack_bits(upper, 1)], dim=-1)


def unpack_ascending(packed: Tensor, count: int, bits: int) -> Tensor:
    """Return the (rows, count) int32 numbers of `pack_ascending`.

    Raises:
        ValueError: a row has not this many numbers: the bytes are damaged.
    """
    low, marks = split_bits(count, bits)
    upper = unpack_bits(packed[:, count_bytes(count, low) :], marks, 1)
    if not (upper.sum(-1) == count).all():
        raise ValueError(f"expected {count} numbers in each row, found another number: the bytes are damaged")
    high = (upper.nonzero()[:, 1].view(-1, count) - torch.arange(count)).int()
    return (high << low) | unpack_bits(packed[:, : count_bytes(count, low)], count, low)
