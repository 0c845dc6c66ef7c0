"""Numbers in as few bits as their range needs: nothing is lost, sizes are as announced, wrong input is refused."""

import math

import pytest
import torch

from distill.teacher.bit_packing import pack_ascending, pack_bits, unpack_ascending, unpack_bits
from distill.teacher.signal_packing import pack_signal, unpack_signal
from distill.teacher.signal_size import MAX_BITS, SignalShape, count_ascending_bytes, count_bytes

COUNTS = [1, 2, 3, 8, 31, 64]


def draw(rows, count, bits):
    """Random numbers whose rows contain the smallest and the largest, too."""
    values = torch.randint(2**bits, (rows, count), generator=torch.Generator().manual_seed(bits))
    values[0], values[1] = 0, 2**bits - 1
    return values.int()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", [1, 7, 8, 9, 15, 16, 17, 18, MAX_BITS])
def test_packed_numbers_are_read_as_they_were(count, bits):
    values = draw(20, count, bits)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (20, count_bytes(count, bits)) == (20, math.ceil(count * bits / 8))
    assert torch.equal(unpack_bits(packed, count, bits), values)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", [1, 3, 8, 15, 18, MAX_BITS])
def test_ascending_numbers_are_read_as_they_were(count, bits):
    values = draw(20, count, bits).sort(-1).values
    packed = pack_ascending(values, bits)
    assert packed.shape == (20, count_ascending_bytes(count, bits))
    assert torch.equal(unpack_ascending(packed, count, bits), values)


def test_bits_lie_where_the_documentation_says():
    """An independent reading of the bytes: 5 = 0b101 and 2 = 0b010 in 3 bits each."""
    assert pack_bits(torch.tensor([[5, 2, 7]]), 3).tolist() == [[0b11_010_101, 0b1]]
    # 1, 4 and 7 in 3 bits: the lowest bits 1, 0, 1; then the marks 0 + 0, 2 + 1 and 3 + 2 of a map.
    assert pack_ascending(torch.tensor([[1, 4, 7]]), 3).tolist() == [[0b101, 0b101001]]


def test_ascending_numbers_take_near_the_least_that_is_possible():
    least = math.log2(math.comb(2**15 + 63, 64)) / 8
    assert least < count_ascending_bytes(64, 15) < 1.1 * least


@pytest.mark.parametrize("pack", [pack_bits, pack_ascending])
@pytest.mark.parametrize("values", [[[-1, 0]], [[0, 8]], [[0, 1000]]])
def test_numbers_out_of_range_are_refused(pack, values):
    with pytest.raises(ValueError, match="expected numbers"):
        pack(torch.tensor(values), 3)


def test_what_cannot_be_packed_or_read_is_refused():
    with pytest.raises(ValueError, match="expected ascending numbers"):
        pack_ascending(torch.tensor([[2, 1]]), 3)
    with pytest.raises(ValueError, match="expected at most 24 bits, found 25"):
        pack_bits(torch.tensor([[1]]), 25)
    packed = pack_ascending(draw(4, 8, 15).sort(-1).values, 15)
    packed[3] = 0
    with pytest.raises(ValueError, match="the bytes are damaged"):
        unpack_ascending(packed, 8, 15)


SHAPE = SignalShape("topk", None, 3, [1.0], 1000)


def make_signal(logprobs):
    rows = len(logprobs)
    return {
        "ids": torch.tensor([[999, 0, 5]] * rows, dtype=torch.int32),
        "logprobs": torch.tensor(logprobs).half(),
        "log_tail": torch.full((rows, 1), -4.0).half(),
        "completion": torch.tensor([7] * rows, dtype=torch.int32),
    }


def test_a_packed_signal_has_the_same_numbers_in_fewer_bytes():
    """From the largest probability to the smallest that float16 has, and with equal ones."""
    signal = make_signal([[0.0, -60000.0, -60000.0], [-6e-8, -0.5, -0.5], [-1.0, -1.001, -12.3]])
    packed = pack_signal(signal, SHAPE)
    found = unpack_signal(packed, SHAPE)
    for name in ("ids", "logprobs", "log_tail"):
        assert torch.equal(found[name], signal[name])
        assert found[name].dtype == signal[name].dtype
    assert sum(tensor.nbytes for tensor in packed.values()) == 3 * SHAPE.bytes_per_token


@pytest.mark.parametrize("logprobs", [[[-2.0, -1.0, -3.0]], [[0.1, -1.0, -3.0]], [[-1.0, math.nan, math.nan]]])
def test_what_is_no_distribution_is_not_stored(logprobs):
    with pytest.raises(ValueError, match="expected log-probabilities that descend from at most 0"):
        pack_signal(make_signal(logprobs), SHAPE)
