"""The cached teacher signal: its files, what it belongs to, and reading it without the teacher.

A folder holds `index.json`, which says where each record's signal is, and data/{fingerprint}/ with shards and, for
`hidden`, the teacher's head. Records are known by the content of prompt and answer as the teacher reads them.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from distill.common.digest import digest_of
from distill.common.errors import InputError, describe
from distill.models.fingerprint import fingerprint_model, list_model_files

FORMAT = 1


INDEX, HEAD, FILES = "index.json", "head.safetensors", "teacher_files.json"
NAMES = {"hidden": ("hidden",), "topk": ("ids", "logprobs", "log_tail")}
ANEW = "snakemake makes it anew: --forcerun {path}; by hand: compute_signal.py with the same --out"


def signal_key(prompt: Sequence[int], completion: Sequence[int]) -> str:
    """32 hex digits that stand for a prompt and an answer, token by token; steps and line numbers play no part."""
    digest = hashlib.sha256(f"{len(prompt)}:{len(completion)}:".encode())
    digest.update(array("i", prompt).tobytes() + array("i", completion).tobytes())
    return digest.hexdigest()[:32]


def topk_at(logprobs: Tensor, log_tail: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The kept log-probabilities at a temperature.

    They are in proportion to the ones at 1 divided by it, and the kept tail says what they sum to: what float16 rounds
    off does not add up.

    Args:
        logprobs: (rows, k), at temperature 1.
        log_tail: (rows,), at `temperature`.

    Returns:
        (rows, k) float32 log-probabilities and (rows,) float32 logarithm of the tail's.
    """
    tail = log_tail.float()
    # log(1 − exp(x)) without loss at either end.
    mass = torch.where(tail > -0.5, (-torch.expm1(tail)).clamp(min=1e-30).log(), torch.log1p(-tail.exp()))
    return (logprobs.float() / temperature).log_softmax(-1) + mass[:, None], tail


def fingerprint_parts(
    *,
    kind: str,
    top_k: int | None,
    temperatures: Sequence[float],
    weights: str,
    dtype: torch.dtype,
    quantization: str,
    tokenizer: Any,
) -> dict[str, Any]:
    """All that decides a signal but the records; `weights` is a digest of `fingerprint_model`."""
    is_topk = kind == "topk"
    return {
        "format": FORMAT,
        "kind": kind,
        "top_k": top_k if is_topk else None,
        "temperatures": sorted(temperatures) if is_topk else [],
        "weights": weights,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": quantization,
        "template": digest_of(tokenizer.chat_template)[:16],
        "vocabulary": vocabulary_size(tokenizer),
    }


def vocabulary_size(tokenizer: Any) -> int:
    """Ids from 0 that a tokenizer may give; the rest of a model's logits are padding."""
    return max(tokenizer.get_vocab().values()) + 1


def read_signal(shard: Any, kind: str, start: int, rows: int) -> dict[str, Tensor]:
    """A record's tensors in an open shard: `hidden` (rows, width), or `ids`, `logprobs` (rows, k) and `log_tail`."""
    return {name: shard.get_slice(name)[start : start + rows] for name in NAMES[kind]}


class SignalReader:
    """The signals of a category, read from the disk as they are asked for.

    Attributes:
        kind, top_k, temperatures, vocabulary: as computed.
        width: of hidden states, None for `topk`.
        parts: of `fingerprint_parts`, and `names` of model and adapter.
        fingerprint: digest of the parts.

    Raises:
        InputError: the folder holds no index, or one that is broken.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / INDEX
        index = self.read_index()
        self.parts: dict[str, Any] = index["parts"]
        self.names: dict[str, str | None] = index["names"]
        self.kind: str = self.parts["kind"]
        self.top_k: int | None = self.parts["top_k"]
        self.temperatures: list[float] = self.parts["temperatures"]
        self.vocabulary: int = self.parts["vocabulary"]
        self.width: int | None = index["width"]
        self.fingerprint: str = index["fingerprint"]
        self.records: dict[str, list[Any]] = index["records"]
        self.data = self.folder / "data" / self.fingerprint
        self.files: dict[str, Any] = {}

    def read_index(self) -> dict[str, Any]:
        """index.json, looked over."""
        advice = ANEW.format(path=self.path)
        if not self.path.exists():
            raise InputError(f"{self.path}: expected the index of a teacher signal, found none; {advice}")
        try:
            index = json.loads(self.path.read_text(encoding="utf-8"))
            is_known = index["parts"]["format"] == FORMAT and isinstance(index["records"], dict)
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.path}: expected the index of a teacher signal, found {describe(error)}; {advice}"
            ) from None
        if not is_known:
            raise InputError(f"{self.path}: expected format {FORMAT} of a teacher signal, found another; {advice}")
        return index

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def open_shard(self, name: str) -> Any:
        """A shard, mapped into memory once.

        Raises:
            InputError: it is gone or torn.
        """
        if name not in self.files:
            path = self.data / name
            try:
                self.files[name] = safe_open(str(path), framework="pt")
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{path}: expected a shard of the teacher signal ({error}); {ANEW.format(path=self.path)}"
                ) from None
        return self.files[name]

    def read(self, key: str) -> dict[str, Tensor]:
        """A record's signal: `hidden` (rows, width), or `ids` and `logprobs` (rows, k) and `log_tail` (rows, T)."""
        shard, start, rows = self.records[key][:3]
        return read_signal(self.open_shard(shard), self.kind, start, rows)

    def head(self, device: torch.device, dtype: torch.dtype | None = None) -> torch.nn.Linear:
        """The teacher's head, frozen; of `hidden`."""
        path = self.data / HEAD
        if not path.exists():
            raise InputError(f"{path}: expected the teacher's head, found none; {ANEW.format(path=self.path)}")
        tensors = load_file(path)
        outputs, width = tensors["weight"].shape
        with torch.device("meta"):
            head = torch.nn.Linear(width, outputs, bias="bias" in tensors)
        head.load_state_dict(tensors, assign=True)
        return head.to(device, dtype).requires_grad_(False).eval()


def stat_files(model: str, adapter: str | None) -> dict[str, Any] | None:
    """Place, size and time of change of the files that decide a local teacher; None for one of a hub."""
    folders = [folder for folder in (model, adapter) if folder]
    if not all(Path(folder).is_dir() for folder in folders):
        return None
    stats = ((str(path.resolve()), path.stat()) for folder in folders for path in list_model_files(folder))
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def find_weights_digest(reader: SignalReader, model: str, adapter: str | None) -> str:
    """`fingerprint_model` of the configured teacher.

    The digest that the signal was computed with, where no file has changed since by size and time: no weights are
    opened then. Samples of them are read otherwise.
    """
    noted, found = reader.data / FILES, stat_files(model, adapter)
    if found is not None and noted.exists() and json.loads(noted.read_text(encoding="utf-8")) == found:
        return reader.parts["weights"]
    return fingerprint_model(model, adapter)


def check_signal_fits(
    reader: SignalReader,
    *,
    kind: str,
    top_k: int | None,
    temperature: float,
    model: str,
    adapter: str | None,
    dtype: torch.dtype,
    quantization: str,
    tokenizer: Any,
) -> None:
    """Refuse the signal of another teacher.

    Args:
        temperature: one of those that `topk` is kept for.
        tokenizer: the teacher's.

    Raises:
        InputError: names all that differs.
    """
    wanted = fingerprint_parts(
        kind=kind,
        top_k=top_k,
        temperatures=reader.temperatures,
        weights=find_weights_digest(reader, model, adapter),
        dtype=dtype,
        quantization=quantization,
        tokenizer=tokenizer,
    )
    words = {
        "weights": f"teacher weights (model {model}, adapter {adapter})",
        "template": "the teacher's chat template",
        "vocabulary": "ids of the teacher's tokenizer",
        "format": "format of the files",
    }
    different = [
        f"{words.get(name, name)}: expected {value}, found {reader.parts.get(name)}"
        for name, value in wanted.items()
        if reader.parts.get(name) != value
    ]
    if kind == reader.kind == "topk" and temperature not in reader.temperatures:
        kept = ", ".join(map(str, reader.temperatures))
        different.append(f"temperature: expected {temperature} among those kept, found {kept}")
    if different:
        computed = f"model {reader.names['model']}, adapter {reader.names['adapter']}"
        listed = "\n".join(f"  {line}" for line in different)
        advice = ANEW.format(path=reader.path)
        raise InputError(f"{reader.path}: this signal is of another teacher ({computed}):\n{listed}\n{advice}")
