"""Keys and values of answers that are under way: a row each, every row with a length of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from distill.models.batches import AUTO_BATCH_SIZE
from distill.models.memory import free_memory

MOST_ROWS = {"cpu": 64, "cuda": 512}
SHARE = 0.8  # of the free memory that a growing batch may plan with


class RowLimit:
    """How many answers are decoded at a time.

    Args:
        batch_size: None for a size that doubles as long as memory allows; a number stays, but for halving.
        devices: that hold the model's layers; the first one computes when there is no GPU.
        row_bytes: what the longest prompt with its longest answer takes, in bytes: keys and values, and a step.
    """

    def __init__(self, batch_size: int | None, devices: Sequence[torch.device], row_bytes: int):
        self.devices, self.row_bytes = devices, row_bytes
        kind = devices[0].type
        fits = max(1, int(SHARE * self.free()) // max(row_bytes, 1))
        self.size = batch_size or min(AUTO_BATCH_SIZE[kind], fits)
        self.most = batch_size or MOST_ROWS[kind]

    def free(self) -> int:
        """Bytes that are free on all devices together."""
        return sum(map(free_memory, self.devices))

    def grow(self, rows: int, cache: "SlotCache") -> int:
        """The limit, doubled before where all rows are taken and memory allows it."""
        if rows == self.size and 2 * self.size <= self.most:
            needed = 2 * self.size * self.row_bytes - cache.nbytes
            if needed < SHARE * self.free():
                self.size *= 2
        return self.size

    def halve(self) -> bool:
        """Halve the limit, for good, after memory ran out; False where there is nothing to halve."""
        if self.size == 1:
            return False
        self.size //= 2
        self.most = self.size
        return True


GROWTH = 64  # tokens by which a cache that is too short grows


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, capacity, dimension) each, written at each row's own position."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, slots: "SlotCache"):
        super().__init__()
        self.slots = slots

    @property
    def nbytes(self) -> int:
        """Memory of both tensors."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Empty tensors of the right kind."""
        self.keys, self.values = (
            states.new_empty(0, states.shape[1], 0, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def resize(self, rows: int, capacity: int) -> None:
        """Make room for `rows` of `capacity` tokens; what is there and fits stays."""
        if not self.is_initialized or self.keys.shape[0] == rows and self.keys.shape[2] == capacity:
            return
        self.keys, self.values = (resized(tensor, rows, capacity) for tensor in (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one token to each of the first rows; returns their keys and values up to the longest row's end."""
        rows = key_states.shape[0]
        places = self.slots.rows[:rows].to(self.keys.device), self.slots.positions[:rows].to(self.keys.device)
        self.keys[places[0], :, places[1]] = key_states[:, :, 0].to(self.keys.dtype)  # mixed under autocast
        self.values[places[0], :, places[1]] = value_states[:, :, 0].to(self.values.dtype)
        length = self.slots.length
        return self.keys[:rows, :, :length], self.values[:rows, :, :length]

    def write(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values of a prompt, (heads, length, dimension), at the start of a row."""
        length = keys.shape[1]
        self.keys[row, :, :length], self.values[row, :, :length] = keys, values

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one."""
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query sees."""
        return self.slots.length, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return self.slots.length

    def get_max_length(self) -> int:
        """No longest."""
        return -1


def resized(tensor: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    """A tensor of other size in its first and third dimension, holding what fits.

    Zeros elsewhere: what memory happens to hold may be NaN, which outlives a mask.
    """
    new = tensor.new_zeros(rows, tensor.shape[1], capacity, tensor.shape[3])
    kept = min(rows, tensor.shape[0]), min(capacity, tensor.shape[2])
    new[: kept[0], :, : kept[1]] = tensor[: kept[0], :, : kept[1]]
    return new


class SlotCache(Cache):
    """A cache for decoding in which rows come and go.

    Attributes:
        positions: (rows,) where each row's next token goes, which is its length so far.
        length: keys that the next step sees: the longest row with its next token.
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
        """Memory of all keys and values."""
        return sum(layer.nbytes for layer in self.slots)

    def resize(self, rows: int, longest: int) -> None:
        """Make room for `rows` and for `longest` tokens in each; the capacity grows in steps and does not shrink."""
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
        """Take over the keys and values of prompts, in the rows from `first` on.

        Args:
            starts: where each prompt's own keys begin, after padding.
            lengths: how many there are.
        """
        for layer, source in zip(self.slots, prompts.layers, strict=True):
            keys, values = keys_and_values(source)
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
                layer.resize(len(self.rows), self.capacity)
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                own = slice(start, start + length)
                layer.write(first + row, keys[row, :, own], values[row, :, own])
        self.positions[first : first + len(lengths)] = torch.tensor(lengths, device=self.device)

    def release(self) -> None:
        """Give all memory back now; layers and cache refer to each other, and would wait for Python's collector."""
        for layer in self.slots:
            del layer.keys, layer.values
            layer.is_initialized = False

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one."""
        for layer in self.slots:
            layer.move(source, target)
        self.positions[target] = self.positions[source]


def keys_and_values(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a layer of transformers' own cache: (rows, heads, length, dimension) each."""
    return layer.keys, layer.values
