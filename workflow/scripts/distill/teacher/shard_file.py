"""Reading rows of a shard (a safetensors file) without mapping it into memory.

Pages of a mapped file count as resident memory of the process (RssFile) for as long as nothing else needs them, so that
a training that has read all shards seems to hold all of them. Rows that are read into memory of their own do not.
"""

import json
import os
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

DTYPES = {
    "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
SIZE_BYTES = 8  # of the header's length, little-endian; the header follows as JSON, then the tensors


class ShardFile:
    """An open safetensors file, read with `pread`: also by several threads, and after a fork.

    Attributes:
        metadata: the texts that the file's header contains.
        shapes: shape of each tensor by name.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a whole safetensors file.
    """

    def __init__(self, path: Path):
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed in __exit__)
        try:
            self.read_header()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self.file.close()
            raise ValueError(f"not a whole safetensors file: {error}") from None

    def read_header(self) -> None:
        """Read names, types and places of the tensors, and check that the file is as long as they say."""
        total = os.fstat(self.file.fileno()).st_size
        size = int.from_bytes(self.read_bytes(0, SIZE_BYTES), "little")
        if size > total - SIZE_BYTES:
            raise ValueError(f"expected a header of {size} bytes, found {total - SIZE_BYTES}")
        header: dict[str, Any] = json.loads(self.read_bytes(SIZE_BYTES, size))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: DTYPES[entry["dtype"]] for name, entry in header.items()}
        begin = SIZE_BYTES + size
        self.places = {name: begin + entry["data_offsets"][0] for name, entry in header.items()}
        for name, place in self.places.items():
            end = begin + header[name]["data_offsets"][1]
            if end - place != prod(self.shapes[name]) * self.dtypes[name].itemsize:
                raise ValueError(f"expected the size of {name} to be that of its shape and type")
        end = max((begin + entry["data_offsets"][1] for entry in header.values()), default=begin)
        if end != total:
            raise ValueError(f"expected {end} bytes, found {total}")

    def read_bytes(self, place: int, size: int) -> bytearray:
        """Read bytes from a place.

        Raises:
            ValueError: the file ends before.
        """
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            count = os.preadv(self.file.fileno(), [rest], place + size - len(rest))
            if not count:
                raise ValueError(f"expected {size} bytes at byte {place}, found {size - len(rest)}")
            rest = rest[count:]
        return found

    def read_rows(self, name: str, start: int, rows: int) -> Tensor:
        """Read rows of a tensor into memory of their own.

        Raises:
            OSError: the disk fails.
            ValueError: the tensor has no such rows.
        """
        shape, dtype = self.shapes[name], self.dtypes[name]
        if not 0 <= start <= start + rows <= shape[0]:
            raise ValueError(f"expected rows {start} to {start + rows} of {name}, found {shape[0]} rows")
        row = prod(shape[1:]) * dtype.itemsize
        if not row * rows:
            return torch.empty(rows, *shape[1:], dtype=dtype)
        data = self.read_bytes(self.places[name] + start * row, row * rows)
        return torch.frombuffer(data, dtype=dtype).view(rows, *shape[1:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
