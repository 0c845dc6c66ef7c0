"""Shards of a teacher signal: complete safetensors files that list their own records."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill.common.errors import InputError
from distill.common.files import remove_leftovers
from distill.teacher.signal_files import FORMATS, open_shard
from distill.teacher.signal_packing import pack_signal
from distill.teacher.signal_size import SignalShape

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20  # a shard is written when it has this size ...
SHARD_SECONDS = 60.0  # ... or when this time has passed, which is what a kill costs at most


def save_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises:
        InputError: the file cannot be written, for example because the disk is full; names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, aside, metadata)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except SafetensorError as error:  # also raised for a full disk
        raise InputError(f"{path}: cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def scan_shards(folder: Path, kind: str) -> dict[str, list[Any]]:
    """Return [shard, start, rows] of each record that earlier runs computed, by key.

    Shards of a signal of this kind that are torn or of another format are skipped with a warning.
    """
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        try:
            with open_shard(path, kind) as file:
                records = json.loads(file.metadata["records"])
                rows = {shape[0] for shape in file.shapes.values()}
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.warning("%s: expected a complete shard of the teacher signal (%s); skipped", path, error)
            continue
        if len(rows) == 1:
            found |= {key: [path.name, start, count] for key, start, count in records if key not in found}
    return found


class ShardWriter:
    """Collects computed signals and writes them as shards.

    Attributes:
        places: [shard, start, rows] of each record written so far, by key.

    Args:
        folder: folder of the shards; new ones continue its numbering.
        shape: what the signal stores.
    """

    def __init__(self, folder: Path, shape: SignalShape):
        self.folder, self.shape = folder, shape
        self.pending: list[tuple[str, dict[str, Tensor]]] = []
        self.size, self.since = 0, time.monotonic()
        self.places: dict[str, list[Any]] = {}
        numbers = [int(path.stem) for path in folder.glob("[0-9]*.safetensors") if path.stem.isdecimal()]
        self.number = max(numbers, default=-1) + 1

    def add(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Add a record's signal; write a shard if it is large enough or the last one is old enough.

        Raises:
            InputError: the signal is not one of a distribution, for example because logits are not finite.
        """
        try:
            packed = pack_signal(tensors, self.shape)
        except ValueError as error:
            raise InputError(f"teacher signal {key} in {self.folder}: {error}") from None
        self.pending.append((key, packed))
        self.size += sum(tensor.nbytes for tensor in packed.values())
        if self.size >= SHARD_BYTES or time.monotonic() - self.since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the signals added since the last shard."""
        if self.pending:
            name, start = f"{self.number:05}.safetensors", 0
            records: list[tuple[str, int, int]] = []
            for key, tensors in self.pending:
                rows = len(tensors["completion"])
                records.append((key, start, rows))
                start += rows
            joined = {part: torch.cat([tensors[part] for _, tensors in self.pending]) for part in self.pending[0][1]}
            metadata = {"format": str(FORMATS[self.shape.kind]), "records": json.dumps(records)}
            save_whole(self.folder / name, joined, metadata)
            self.places |= {key: [name, first, rows] for key, first, rows in records}
            self.number += 1
        self.pending, self.size, self.since = [], 0, time.monotonic()
