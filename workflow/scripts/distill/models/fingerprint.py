"""Which files of a model's or an adapter's folder decide its answers, and a digest of them that takes milliseconds."""

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
READ_WHOLE = 2**20  # weights of up to this many bytes are read whole
SAMPLE = 64  # bytes
SAMPLES = 1024  # of a file whose tensors are not known
LARGEST_HEADER = 100_000_000  # bytes, as the format has it


def list_model_files(folder: str | Path) -> list[Path]:
    """Weights, configurations, tokenizer and template of a folder, sorted; what a training left beside them is none."""
    found = (path for path in Path(folder).glob("*") if any(fnmatch(path.name, name) for name in DECIDING))
    return sorted(path for path in found if not path.is_dir())


def find_gguf(model: str | Path) -> str | None:
    """Name of the GGUF file that a folder's weights are in; None where they are in other files, too, or several."""
    files = list_model_files(model)
    found = [path.name for path in files if path.suffix == ".gguf"]
    has_others = any(path.suffix in WEIGHTS and path.suffix != ".gguf" for path in files)
    return found[0] if len(found) == 1 and not has_others else None


def read_header(path: Path, file: int, size: int) -> tuple[bytes, dict[str, Any]]:
    """(bytes, tensors by name) of a safetensors file's header; the tensors' bytes follow it.

    Raises:
        InputError: the file is no safetensors file, or is cut off.
    """
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
        raise InputError(f"{path}: expected a safetensors file, found {size} bytes without a whole header of it")
    raw = os.pread(file, 8 + length, 0)
    try:
        tensors = {name: part for name, part in json.loads(raw[8:]).items() if name != "__metadata__"}
        expected = 8 + length + max((part["data_offsets"][1] for part in tensors.values()), default=0)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a safetensors file, found a header that cannot be read ({error})") from None
    if expected != size:
        raise InputError(f"{path}: expected {expected} bytes, as its header says, found {size}: it is not whole")
    return raw, tensors


def find_samples(size: int, tensors: dict[str, Any], start: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, bytes) of the parts that are read: start, middle and end of each tensor.

    Without tensors: evenly over the file, and its end, where a zip archive, as torch.save writes it, keeps a checksum
    of every tensor.
    """
    for low, high in sorted(part["data_offsets"] for part in tensors.values()):
        for offset in sorted({low, max(low, (low + high - SAMPLE) // 2), max(low, high - SAMPLE)}):
            yield start + offset, min(SAMPLE, high - offset)
    if not tensors:
        for index in range(SAMPLES):
            yield index * size // SAMPLES, SAMPLE
        yield size - READ_WHOLE, READ_WHOLE


def digest_weights(path: Path) -> bytes:
    """SHA-256 of a file of weights by its size, its header and samples of every tensor; of all of a small one.

    Raises:
        InputError: a safetensors file that is not whole.
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
    """Digest of what decides a model or adapter folder's answers: weights, configuration, tokenizer, template.

    Weights are sampled, all else is read whole: training or merging changes weights by the million, so that samples
    of every tensor show it, while a few numbers set by hand between the samples go unseen. The folder's own name and
    place do not count, nor time stamps.

    Raises:
        InputError: a safetensors file is not whole; names it.
    """
    digest = hashlib.sha256()
    for path in list_model_files(folder):
        is_sampled = path.suffix in WEIGHTS
        found = digest_weights(path) if is_sampled else hashlib.sha256(path.read_bytes()).digest()
        digest.update(path.name.encode() + b"\0" + found)
    return digest.hexdigest()


@functools.cache
def fingerprint_folder(model: str) -> str:
    """`fingerprint_files` of a local folder, once a process; empty for a hub id.

    What cannot be read has a word instead of a digest: the job that loads it says what is wrong, and stops no other.
    """
    try:
        return fingerprint_files(model) if Path(model).is_dir() else ""
    except (InputError, OSError):
        return "unreadable"


def find_commit(model: str) -> str:
    """The commit that a hub id stands for: the hub's newest, or the one downloaded where the hub is out of reach.

    Raises:
        InputError: neither is there.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json")).parent.name
    except (OSError, ValueError) as error:
        text = f"{model}: expected a local folder or a model of the hub that can be reached or is downloaded already"
        raise InputError(f"{text}: {error}") from error


def fingerprint_model(model: str, adapter: str | None = None) -> str:
    """Digest of a model and its adapter by content; a hub model is known by its commit.

    Raises:
        InputError: the adapter is no checkpoint, the model is not to be had, or weights are not whole.
    """
    if adapter:
        check_adapter(adapter)
    source = fingerprint_files(model) if Path(model).is_dir() else f"{model}@{find_commit(model)}"
    return digest_of({"model": source, "adapter": fingerprint_files(adapter) if adapter else None})


def check_adapter(adapter: str) -> None:
    """Say plainly that a folder is no adapter checkpoint.

    Raises:
        InputError: there is no adapter_config.json in it.
    """
    if not (Path(adapter) / "adapter_config.json").exists():
        raise InputError(f"{adapter}: expected a LoRA checkpoint, found no adapter_config.json in it")
