"""How the tensors of a signal are stored in a shard, and read from it.

A `topk` signal is packed without loss: ids take the bits that the vocabulary needs. The log-probabilities of a token
are not positive and descend, so the bits of their float16 numbers without the sign ascend, which takes fewer bits.
"""

import torch
from torch import Tensor

from distill.teacher.bit_packing import pack_ascending, pack_bits, unpack_ascending, unpack_bits
from distill.teacher.signal_size import LOG_BITS, SignalShape

SIGN = -(2**LOG_BITS)  # of a float16 number, as an int16


def pack_signal(tensors: dict[str, Tensor], shape: SignalShape) -> dict[str, Tensor]:
    """Return a record's tensors as a shard stores them.

    Args:
        tensors: on the CPU, from a teacher's `compute`.
        shape: what the signal stores.

    Raises:
        ValueError: the log-probabilities do not descend from at most 0, or ids are outside the vocabulary.
    """
    if shape.kind == "hidden":
        return tensors
    logprobs = tensors["logprobs"]
    if not ((logprobs <= 0).all() and (logprobs[:, 1:] <= logprobs[:, :-1]).all()):  # also for NaN
        raise ValueError("expected log-probabilities that descend from at most 0, found others")
    numbers = logprobs.contiguous().view(torch.int16).int() & (2**LOG_BITS - 1)
    packed = {}
    if shape.tail_samples:
        flat = pack_ascending(tensors["tail_ids"].flatten(0, 1), shape.id_bits)
        packed["tail_ids"] = flat.unflatten(0, (-1, len(shape.temperatures)))
    return (
        tensors
        | packed
        | {
            "ids": pack_bits(tensors["ids"], shape.id_bits),
            "logprobs": pack_ascending(numbers, LOG_BITS),
            "completion": pack_bits(tensors["completion"][:, None], shape.id_bits),
        }
    )


def unpack_signal(tensors: dict[str, Tensor], shape: SignalShape) -> dict[str, Tensor]:
    """Return the tensors of `pack_signal` as a teacher computed them.

    Raises:
        ValueError: the bytes are damaged.
    """
    if shape.kind == "hidden":
        return tensors
    numbers = unpack_ascending(tensors["logprobs"], shape.kept, LOG_BITS)
    unpacked = {}
    if shape.tail_samples:
        flat = unpack_ascending(tensors["tail_ids"].flatten(0, 1), shape.tail_samples, shape.id_bits)
        unpacked["tail_ids"] = flat.unflatten(0, (-1, len(shape.temperatures)))
    return (
        tensors
        | unpacked
        | {
            "ids": unpack_bits(tensors["ids"], shape.kept, shape.id_bits),
            "logprobs": (numbers | SIGN).to(torch.int16).view(torch.float16),
        }
    )
