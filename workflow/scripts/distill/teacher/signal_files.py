"""The cached teacher signal: its files, the teacher it belongs to, and reading it without the teacher.

A folder contains `index.json` with the place of each record's signal, and data/{fingerprint}/ with the shards and, for
`hidden`, the teacher's head; `data` may be a link to another disk. The key of a record is a digest of its prompt and
completion tokens.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.common.digest import digest_of
from distill.common.errors import InputError, describe
from distill.models.chat import ChatTemplate
from distill.models.fingerprint import fingerprint_model, list_model_files
from distill.models.logits import LogitTransform
from distill.models.vocabulary import vocabulary_size
from distill.teacher.shard_file import ShardFile
from distill.teacher.signal_packing import unpack_signal
from distill.teacher.signal_size import SignalShape
from distill.teacher.signal_store import DATA

FORMATS = {"hidden": 1, "topk": 2}  # of the shards, by kind; another number has another layout
INDEX, HEAD, FILES = "index.json", "head.safetensors", "teacher_files.json"
RECOMPUTE = "recompute it with snakemake --forcerun {path}, or with compute_signal.py and the same --out"


def signal_key(prompt: Sequence[int], completion: Sequence[int]) -> str:
    """Return the key of a record: 32 hex digits that depend on the tokens of prompt and completion only."""
    digest = hashlib.sha256(f"{len(prompt)}:{len(completion)}:".encode())
    digest.update(array("i", prompt).tobytes() + array("i", completion).tobytes())
    return digest.hexdigest()[:32]


def topk_at(logprobs: Tensor, log_tail: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the stored log-probabilities at a temperature.

    They are the log-probabilities at temperature 1 divided by it, normalised so that they and the stored tail sum to
    one. Rounding to float16 therefore does not accumulate.

    Args:
        logprobs: (rows, k) log-probabilities at temperature 1.
        log_tail: (rows,) log-probability of all other tokens together at `temperature`.
        temperature: the temperature.

    Returns:
        (rows, k) float32 log-probabilities, and the (rows,) float32 log-probability of the tail.
    """
    tail = log_tail.float()
    # log(1 − exp(x)), computed without loss of precision near 0 and near −∞.
    mass = torch.where(tail > -0.5, (-torch.expm1(tail)).clamp(min=1e-30).log(), torch.log1p(-tail.exp()))
    return (logprobs.float() / temperature).log_softmax(-1) + mass[:, None], tail


def fingerprint_parts(
    *,
    kind: str,
    top_k: int | None,
    temperatures: Sequence[float],
    tail_samples: int = 0,
    weights: str,
    dtype: torch.dtype,
    quantization: str,
    chat: ChatTemplate,
    serving: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return everything except the records that determines a signal.

    Args:
        kind: `hidden` or `topk`.
        top_k, temperatures, tail_samples: settings of `topk`; ignored for `hidden`.
        weights: digest of the teacher's weights, from `fingerprint_model`.
        dtype, quantization: how the teacher is loaded.
        chat: the teacher's chat template.
        serving: what a server changes, from `describe_serving`.
    """
    is_topk = kind == "topk"
    return {
        "format": FORMATS[kind],
        "kind": kind,
        "top_k": top_k if is_topk else None,
        "temperatures": sorted(temperatures) if is_topk else [],
        **({"tail_samples": tail_samples} if is_topk else {}),
        "weights": weights,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": quantization,
        **chat.digest_parts(),
        "template": digest_of(chat.tokenizer.chat_template)[:16],
        "vocabulary": vocabulary_size(chat.tokenizer),
        **({"serving": dict(serving)} if serving else {}),
    }


def read_signal(shard: ShardFile, shape: SignalShape, start: int, rows: int) -> dict[str, Tensor]:
    """Return a record's tensors from an open shard.

    Returns:
        `hidden` (rows, width); or `ids` and `logprobs` (rows, k), `log_tail` (rows, temperatures) and with a sampled
        tail `tail_ids` (rows, temperatures, samples) and `tail_entropy` (rows, temperatures).

    Raises:
        OSError: the disk fails.
        ValueError: the record's bytes are damaged.
    """
    return unpack_signal({name: shard.read_rows(name, start, rows) for name in shape.names}, shape)


def open_shard(path: Path, kind: str) -> ShardFile:
    """Open a shard.

    Raises:
        OSError, ValueError: it is missing, damaged, or of another format.
    """
    shard = ShardFile(path)
    found = shard.metadata.get("format", "1")  # the first format had no number
    if found != str(FORMATS[kind]):
        raise ValueError(f"expected format {FORMATS[kind]} of signal {kind}, found {found}")
    return shard


class SignalReader:
    """Reads the signals of a category from disk, record by record.

    Args:
        folder: folder with index.json.

    Attributes:
        parts: what determines the signal; see `fingerprint_parts`.
        fingerprint: digest of the parts.
        names: the teacher's `model` and `adapter`.
        kind, top_k, temperatures, tail_samples, vocabulary: taken from the parts.
        shape: what the signal stores of each token.
        transform: what the teacher does to its logits after the head.
        records: [shard, start, rows, uid] of each record by key.

    Raises:
        InputError: the index is missing or damaged.
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
        self.tail_samples: int = self.parts.get("tail_samples", 0)
        settings = self.top_k, tuple(self.temperatures), self.vocabulary, self.tail_samples
        self.shape = SignalShape(self.kind, index["width"], *settings)
        self.transform = LogitTransform(**index.get("logits", {}))
        self.fingerprint: str = index["fingerprint"]
        self.records: dict[str, list[Any]] = index["records"]
        self.data = self.folder / DATA / self.fingerprint
        self.files: dict[str, ShardFile] = {}

    def read_index(self) -> dict[str, Any]:
        """Read and check index.json."""
        advice = RECOMPUTE.format(path=self.path)
        if not self.path.exists():
            raise InputError(f"{self.path}: expected the index of a teacher signal, found none; {advice}")
        try:
            index = json.loads(self.path.read_text(encoding="utf-8"))
            kind, found = index["parts"].get("kind"), index["parts"]["format"]
            is_whole = kind in FORMATS and isinstance(index["records"], dict)
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.path}: expected the index of a teacher signal, found {describe(error)}; {advice}"
            ) from None
        if not is_whole:
            raise InputError(f"{self.path}: expected the index of a teacher signal, found another file; {advice}")
        if found != FORMATS[kind]:
            raise InputError(
                f"{self.path}: expected format {FORMATS[kind]} of signal {kind}, found format {found}; {advice}"
            )
        return index

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def open_shard(self, name: str) -> ShardFile:
        """Open a shard; a shard is opened once.

        Raises:
            InputError: the shard is missing, damaged or of another format; names the file.
        """
        if name not in self.files:
            try:
                self.files[name] = open_shard(self.data / name, self.kind)
            except (OSError, ValueError) as error:
                raise self.make_error(name, error) from None
        return self.files[name]

    def make_error(self, name: str, error: Exception) -> InputError:
        """Return the error of a shard that cannot be read."""
        path, advice = self.data / name, RECOMPUTE.format(path=self.path)
        return InputError(f"{path}: expected a shard of the teacher signal ({error}); {advice}")

    def read(self, key: str) -> dict[str, Tensor]:
        """Return a record's tensors; see `read_signal`.

        Raises:
            InputError: the shard cannot be read; names the file.
        """
        name, start, rows = self.records[key][:3]
        shard = self.open_shard(name)
        try:
            return read_signal(shard, self.shape, start, rows)
        except (OSError, ValueError) as error:
            raise self.make_error(name, error) from None

    def head(self, device: torch.device, dtype: torch.dtype | None = None) -> torch.nn.Linear:
        """Load the teacher's head, frozen; only for `hidden`.

        Raises:
            InputError: the file is missing; names it.
        """
        path = self.data / HEAD
        if not path.exists():
            raise InputError(f"{path}: expected the teacher's head, found none; {RECOMPUTE.format(path=self.path)}")
        tensors = load_file(path)
        outputs, width = tensors["weight"].shape
        with torch.device("meta"):
            head = torch.nn.Linear(width, outputs, bias="bias" in tensors)
        head.load_state_dict(tensors, assign=True)
        return head.to(device, dtype).requires_grad_(False).eval()


def stat_files(model: str, adapter: str | None) -> dict[str, Any] | None:
    """Return size and modification time of a local teacher's files by path; None for a teacher from a hub."""
    folders = [folder for folder in (model, adapter) if folder]
    if not all(Path(folder).is_dir() for folder in folders):
        return None
    stats = ((str(path.resolve()), path.stat()) for folder in folders for path in list_model_files(folder))
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}


def fingerprint_teacher(model: str, adapter: str | None, serving: Mapping[str, Any]) -> str:
    """Return `fingerprint_model` of local weights, or a digest of the name under which a server offers them."""
    if serving.get("weights") == "served":
        return digest_of({"engine": serving["engine"], "model": model})
    return fingerprint_model(model, adapter)


def find_weights_digest(
    reader: SignalReader, model: str, adapter: str | None, serving: Mapping[str, Any] | None = None
) -> str:
    """Return `fingerprint_teacher` of the configured teacher.

    If no file has changed its size or time since the signal was computed, this is the digest in the index, and no
    weights are opened.
    """
    saved, found = reader.data / FILES, stat_files(model, adapter)
    if found is not None and saved.exists() and json.loads(saved.read_text(encoding="utf-8")) == found:
        return reader.parts["weights"]
    return fingerprint_teacher(model, adapter, serving or {})


def check_signal_fits(
    reader: SignalReader,
    *,
    kind: str,
    top_k: int | None,
    temperature: float,
    tail_samples: int = 0,
    model: str,
    adapter: str | None,
    dtype: torch.dtype,
    quantization: str,
    chat: ChatTemplate,
    serving: Mapping[str, Any] | None = None,
) -> None:
    """Check that a signal belongs to the configured teacher and has the configured settings.

    Args:
        reader: the signal.
        kind, top_k, tail_samples: the configured signal.
        temperature: the student's temperature; a `topk` signal must contain it.
        model, adapter, dtype, quantization: the configured teacher.
        chat: the teacher's chat template.
        serving: what a server changes, from `describe_serving`.

    Raises:
        InputError: something differs; lists all differences.
    """
    wanted = fingerprint_parts(
        kind=kind,
        top_k=top_k,
        temperatures=reader.temperatures,
        tail_samples=tail_samples,
        weights=find_weights_digest(reader, model, adapter, serving),
        dtype=dtype,
        quantization=quantization,
        chat=chat,
        serving=serving,
    )
    differences = find_differences(reader.parts, wanted, f"model {model}, adapter {adapter}")
    if kind == reader.kind == "topk" and temperature not in reader.temperatures:
        stored = ", ".join(map(str, reader.temperatures))
        differences.append(f"temperature: expected {temperature} among those stored, found {stored}")
    if differences:
        computed = f"model {reader.names['model']}, adapter {reader.names['adapter']}"
        listed = "\n".join(f"  {line}" for line in differences)
        advice = RECOMPUTE.format(path=reader.path)
        raise InputError(f"{reader.path}: this signal is from another teacher ({computed}):\n{listed}\n{advice}")


def find_differences(found: dict[str, Any], wanted: dict[str, Any], source: str) -> list[str]:
    """Return a line for each part of a fingerprint that differs.

    Args:
        found: parts of the cached signal.
        wanted: parts of the configured teacher.
        source: the configured teacher's model and adapter, for the message.
    """
    names = {
        "weights": f"teacher weights ({source})",
        "template": "the teacher's chat template",
        "vocabulary": "size of the teacher's vocabulary",
        "format": "format of the files",
        "serving": "the server that computed it",
    }
    return [
        f"{names.get(name, name)}: expected {wanted.get(name)}, found {found.get(name)}"
        for name in wanted | found
        if found.get(name) != wanted.get(name)
    ]
