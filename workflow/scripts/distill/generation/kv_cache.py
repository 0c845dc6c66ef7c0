"""The KV cache of continuous batching: one row per running sequence, each with its own length."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from distill.models.batches import AUTO_BATCH_SIZE
from distill.models.memory import free_memory

MAX_ROWS = {"cpu": 64, "cuda": 512}
MEMORY_SHARE = 0.8  # share of the free memory that a growing batch may use
GROWTH = 64  # tokens; the capacity is a multiple of it


class RowLimit:
    """Limits how many sequences are decoded at the same time.

    Args:
        batch_size: fixed number of rows, which is only ever halved; None doubles the limit as long as memory allows.
        row_bytes: bytes of the largest row by device: its layers' KV cache of the longest prompt with its longest
            answer, and one step.
        reserved: bytes by device that a prefill takes for a moment.
    """

    def __init__(
        self,
        batch_size: int | None,
        row_bytes: Mapping[torch.device, int],
        reserved: Mapping[torch.device, int] | None = None,
    ):
        self.row_bytes, self.reserved = row_bytes, reserved or {}
        kind = next(iter(row_bytes)).type
        self.size = batch_size or min(AUTO_BATCH_SIZE[kind], self.count_fitting())
        self.max_size = batch_size or MAX_ROWS[kind]

    def count_fitting(self) -> int:
        """Return how many rows the free memory of every device holds, at least one."""
        return max(1, min(self.free(device) // max(size, 1) for device, size in self.row_bytes.items()))

    def free(self, device: torch.device) -> int:
        """Return the bytes of a device that rows may take, besides those that they have."""
        return int(MEMORY_SHARE * free_memory(device)) - self.reserved.get(device, 0)

    def grow(self, rows: int, cache: "SlotCache") -> int:
        """Return the limit, doubled first if all rows are taken and the memory of every device allows it."""
        if rows == self.size and 2 * self.size <= self.max_size:
            held = cache.nbytes_by_device()
            needed = {device: 2 * self.size * size - held.get(device, 0) for device, size in self.row_bytes.items()}
            if all(size < self.free(device) for device, size in needed.items()):
                self.size *= 2
        return self.size

    def halve(self) -> bool:
        """Halve the limit for good, after memory ran out; return False if it is already one row."""
        if self.size == 1:
            return False
        self.size //= 2
        self.max_size = self.size
        return True


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, each (rows, heads, capacity, head size); each row has its own write position."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, slots: "SlotCache"):
        super().__init__()
        self.slots = slots

    @property
    def nbytes(self) -> int:
        """Size of keys and values in bytes."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Create empty keys and values with the dtype, device and head size of the given states."""
        self.keys, self.values = (
            states.new_empty(0, states.shape[1], 0, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def resize(self, rows: int, capacity: int) -> None:
        """Resize to `rows` rows of `capacity` tokens; contents that fit are kept."""
        if not self.is_initialized or self.keys.shape[0] == rows and self.keys.shape[2] == capacity:
            return
        self.keys, self.values = (resized(tensor, rows, capacity) for tensor in (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append one token to each of the first rows.

        Args:
            key_states, value_states: (rows, heads, 1, head size) each.

        Returns:
            Keys and values of these rows, (rows, heads, length, head size) each, up to the end of the longest row.
        """
        rows = key_states.shape[0]
        places = self.slots.rows[:rows].to(self.keys.device), self.slots.positions[:rows].to(self.keys.device)
        self.keys[places[0], :, places[1]] = key_states[:, :, 0].to(self.keys.dtype)  # dtypes differ under autocast
        self.values[places[0], :, places[1]] = value_states[:, :, 0].to(self.values.dtype)
        length = self.slots.length
        return self.keys[:rows, :, :length], self.values[:rows, :, :length]

    def write(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write a prompt's keys and values, (heads, length, head size) each, to the start of a row."""
        length = keys.shape[1]
        self.keys[row, :, :length], self.values[row, :, :length] = keys, values

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a query attends to, and their offset."""
        return self.slots.length, 0

    def get_seq_length(self) -> int:
        """Return the length of the longest row in tokens."""
        return self.slots.length

    def get_max_length(self) -> int:
        """Return -1: the length is not limited."""
        return -1


def resized(tensor: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    """Return a tensor with another size in its first and third dimension; contents that fit are kept.

    The rest is zero: uninitialised memory may hold NaN, which a mask does not remove.
    """
    new = tensor.new_zeros(rows, tensor.shape[1], capacity, tensor.shape[3])
    kept = min(rows, tensor.shape[0]), min(capacity, tensor.shape[2])
    new[: kept[0], :, : kept[1]] = tensor[: kept[0], :, : kept[1]]
    return new


class SlotCache(Cache):
    """A KV cache whose rows are added and removed while decoding.

    Args:
        layers: number of layers.
        device: device of `positions`.

    Attributes:
        positions: (rows,) index where each row's next token is written, which is the row's length.
        length: keys that the next step attends to: the longest row including its next token.
        capacity: tokens that each row has room for.
    """

    def __init__(self, layers: int, device: torch.device):
        self.slots = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.slots))
        self.device = device
        self.rows = self.positions = torch.empty(0, dtype=torch.long, device=device)
        self.length = 0
        self.capacity = 0

    @property
    def nbytes(self) -> int:
        """Size of all keys and values in bytes."""
        return sum(layer.nbytes for layer in self.slots)

    def nbytes_by_device(self) -> dict[torch.device, int]:
        """Return the size of keys and values in bytes, by the device where they lie."""
        found: dict[torch.device, int] = {}
        for layer in self.slots:
            if layer.is_initialized:
                found[layer.keys.device] = found.get(layer.keys.device, 0) + layer.nbytes
        return found

    def resize(self, rows: int, longest: int) -> None:
        """Make room for `rows` rows of `longest` tokens; the capacity grows in steps and never shrinks."""
        if longest > self.capacity:
            self.capacity = longest + GROWTH - 1 - (longest - 1) % GROWTH
        if rows != len(self.rows):
            positions = torch.zeros(rows, dtype=torch.long, device=self.device)
            kept = min(rows, len(self.positions))
            positions[:kept] = self.positions[:kept]
            self.rows, self.positions = torch.arange(rows, device=self.device), positions
        for layer in self.slots:
            layer.resize(rows, self.capacity)

    def write(self, first: int, prompts: Cache, starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Copy the keys and values of prefilled prompts into the rows from `first` on.

        Args:
            first: row of the first prompt.
            prompts: cache with one prompt per row.
            starts: index of each prompt's first key, after left padding.
            lengths: number of each prompt's keys.
        """
        for layer, source in zip(self.slots, prompts.layers, strict=True):
            keys, values = keys_and_values(source)
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
                layer.resize(len(self.rows), self.capacity)
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                own = slice(start, start + length)
                layer.write(first + row, keys[row, :, own], values[row, :, own])
        self.positions[first : first + len(lengths)] = make_tensor(lengths, self.device)

    def release(self) -> None:
        """Free all memory now; layers and cache refer to each other, so Python would free it at the next collection."""
        for layer in self.slots:
            del layer.keys, layer.values
            layer.is_initialized = False

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for layer in self.slots:
            layer.move(source, target)
        self.positions[target] = self.positions[source]


def make_tensor(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Return a tensor of numbers, possibly nested; a copy to a GPU does not wait for the kernels before it."""
    made = torch.tensor(numbers, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def keys_and_values(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of a transformers cache layer, (rows, heads, length, head size) each."""
    return layer.keys, layer.values
