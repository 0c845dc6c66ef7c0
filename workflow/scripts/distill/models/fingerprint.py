"""Fingerprints of models and adapters: which files affect the output, and a digest of them that takes milliseconds."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError

DECIDING = (
    "*.safetensors",
    "*.index.json",
    "pytorch_model*.bin",
    "adapter_model.bin",
    "*.gguf",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
)
WEIGHTS = (".safetensors", ".bin", ".gguf")
READ_WHOLE = 2**20  # bytes; smaller files of weights are hashed whole
SAMPLE = 64  # bytes per sample
SAMPLES = 1024  # samples of a file that is not safetensors
LARGEST_HEADER = 100_000_000  # bytes, a limit of the safetensors format


def list_model_files(folder: str | Path) -> list[Path]:
    """List a folder's weights, configuration, tokenizer and chat template, without the files that training adds."""
    found = (path for path in Path(folder).glob("*") if any(fnmatch(path.name, name) for name in DECIDING))
    return sorted(path for path in found if not path.is_dir())


def find_gguf(model: str | Path) -> str | None:
    """Return the name of the GGUF file that contains a folder's weights; None if there are several or other weights."""
    files = list_model_files(model)
    found = [path.name for path in files if path.suffix == ".gguf"]
    has_others = any(path.suffix in WEIGHTS and path.suffix != ".gguf" for path in files)
    return found[0] if len(found) == 1 and not has_others else None


def read_header(path: Path, file: int, size: int) -> tuple[bytes, dict[str, Any]]:
    """Read the header of a safetensors file.

    Args:
        path: name for error messages.
        file: file descriptor.
        size: bytes of the file.

    Returns:
        The header's bytes, including its length; the entries of the tensors by name, with `data_offsets` counted from
        the end of the header.

    Raises:
        InputError: the file is not a safetensors file, or is truncated.
    """
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
        raise InputError(f"{path}: expected a safetensors file, found {size} bytes without a complete header")
    raw = os.pread(file, 8 + length, 0)
    try:
        tensors = {name: part for name, part in json.loads(raw[8:]).items() if name != "__metadata__"}
        expected = 8 + length + max((part["data_offsets"][1] for part in tensors.values()), default=0)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a safetensors file, found a header that cannot be read ({error})") from None
    if expected != size:
        raise InputError(
            f"{path}: expected {expected} bytes according to its header, found {size}: the file is truncated"
        )
    return raw, tensors


def read_shapes(folder: str, pattern: str = "*.safetensors") -> dict[str, list[int]]:
    """Shapes of the weights in a folder's safetensors files by name; empty for other formats."""
    shapes: dict[str, list[int]] = {}
    for path in Path(folder).glob(pattern):
        file = os.open(path, os.O_RDONLY)
        try:
            tensors = read_header(path, file, path.stat().st_size)[1]
            shapes |= {name: part["shape"] for name, part in tensors.items()}
        finally:
            os.close(file)
    return shapes


def find_samples(size: int, tensors: dict[str, Any], start: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, bytes) of the samples of a file: start, middle and end of each tensor.

    Without tensors, samples are spread evenly over the file. The end of the file is added, because the zip archives of
    torch.save have a checksum of every tensor there.

    Args:
        size: bytes of the file.
        tensors: entries of a safetensors header; empty for other files.
        start: offset of the first tensor.
    """
    for low, high in sorted(part["data_offsets"] for part in tensors.values()):
        for offset in sorted({low, max(low, (low + high - SAMPLE) // 2), max(low, high - SAMPLE)}):
            yield start + offset, min(SAMPLE, high - offset)
    if not tensors:
        for index in range(SAMPLES):
            yield index * size // SAMPLES, SAMPLE
        yield size - READ_WHOLE, READ_WHOLE


def digest_weights(path: Path) -> bytes:
    """Hash a file of weights: its size, its header and samples of every tensor; small files are hashed whole.

    Raises:
        InputError: a safetensors file is malformed or truncated.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        digest = hashlib.sha256(str(size).encode())
        raw, tensors = read_header(path, file, size) if path.suffix == ".safetensors" else (b"", {})
        digest.update(raw)
        parts = [(0, size)] if size <= READ_WHOLE else find_samples(size, tensors, len(raw))
        for offset, count in parts:
            digest.update(os.pread(file, count, offset))
    finally:
        os.close(file)
    return digest.digest()


def fingerprint_files(folder: str | Path) -> str:
    """Hash the files of a model or adapter folder that affect its output.

    Weights are sampled, other files are hashed whole. Training or merging changes almost all weights, so samples of
    every tensor detect it; a few weights edited by hand may go undetected. The folder's path and modification times do
    not matter.

    Raises:
        InputError: a safetensors file is malformed or truncated; names it.
    """
    digest = hashlib.sha256()
    for path in list_model_files(folder):
        is_sampled = path.suffix in WEIGHTS
        found = digest_weights(path) if is_sampled else hashlib.sha256(path.read_bytes()).digest()
        digest.update(path.name.encode() + b"\0" + found)
    return digest.hexdigest()


@functools.cache
def fingerprint_folder(model: str) -> str:
    """Return `fingerprint_files` of a local folder, cached for the process; an empty text for a hub id.

    For a folder that cannot be read, the result is `unreadable`: the job that loads the model reports the error, and
    jobs that do not load it can run.
    """
    try:
        return fingerprint_files(model) if Path(model).is_dir() else ""
    except (InputError, OSError):
        return "unreadable"


def find_commit(model: str) -> str:
    """Return the commit of a Hugging Face model: the newest one, or the cached one if the hub cannot be reached.

    Raises:
        InputError: there is neither.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json")).parent.name
    except (OSError, ValueError) as error:
        text = f"{model}: expected a local folder, or a Hugging Face model that is cached or can be downloaded"
        raise InputError(f"{text}: {error}") from error


def fingerprint_model(model: str, adapter: str | None = None) -> str:
    """Hash a model and its adapter: a local folder by its files, a Hugging Face model by its commit.

    Raises:
        InputError: the adapter is not a checkpoint, the model is not available, or weights are truncated.
    """
    if adapter:
        check_adapter(adapter)
    source = fingerprint_files(model) if Path(model).is_dir() else f"{model}@{find_commit(model)}"
    return digest_of({"model": source, "adapter": fingerprint_files(adapter) if adapter else None})


def check_adapter(adapter: str) -> None:
    """Check that a folder is an adapter checkpoint.

    Raises:
        InputError: it contains no adapter_config.json.
    """
    if not (Path(adapter) / "adapter_config.json").exists():
        raise InputError(f"{adapter}: expected a LoRA checkpoint, found no adapter_config.json in it")
