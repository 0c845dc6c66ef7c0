"""Computes a category's teacher signal, shard by shard: a rerun computes only the records that have none yet."""

import logging
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.common.digest import digest_of
from distill.common.disk import check_free, find_free, format_bytes
from distill.common.errors import InputError
from distill.common.files import write_json
from distill.common.progress import Progress
from distill.common.reporter import Reporter
from distill.common.trackers import TrackerOptions
from distill.generation.engine import ENGINES
from distill.models.batches import in_batches
from distill.models.chat import ChatTemplate
from distill.models.example_table import Example, ExampleTable
from distill.models.examples import encode_examples
from distill.models.load import load_chat, load_config, select_device, select_dtype
from distill.models.logits import read_transform
from distill.records.split_reader import JoinedRecords, Records
from distill.teacher.served_teacher import ServedTeacher
from distill.teacher.serving import describe_serving
from distill.teacher.signal_files import (
    FILES,
    HEAD,
    INDEX,
    SignalReader,
    check_signal_fits,
    fingerprint_parts,
    fingerprint_teacher,
    open_shard,
    read_signal,
    signal_key,
    stat_files,
)
from distill.teacher.signal_shards import ShardWriter, save_whole, scan_shards
from distill.teacher.signal_size import SignalShape, describe_storage
from distill.teacher.signal_store import open_data
from distill.teacher.signal_teacher import TOLERANCE, Options, SignalTeacher

logger = logging.getLogger(__name__)

COMPARED = 4  # cached records that a resumed run recomputes, to check that the teacher is the same
LARGE_TAIL = 0.1  # a larger probability outside the k most likely tokens gives a warning


class KeyedExamples(Mapping[str, Example]):
    """Examples by the key of their signal, each converted to lists of token ids when it is read.

    Args:
        table: the examples. Of those with the same key, the last counts.
    """

    def __init__(self, table: ExampleTable):
        self.table = table
        keys = (signal_key(example["prompt"], example["completion"]) for example in table)
        self.rows = {key: row for row, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __getitem__(self, key: str) -> Example:
        return self.table[self.rows[key]]

    def get_lengths(self, *columns: str) -> dict[str, int]:
        """Number of tokens of each example in some columns together, by key; the tokens are not read."""
        lengths = self.table.get_lengths(*columns).tolist()
        return {key: lengths[row] for key, row in self.rows.items()}

    def get_uids(self) -> dict[str, str]:
        """The uid of each example by key."""
        uids = self.table.get_uids()
        return {key: uids[row] for key, row in self.rows.items()}


def encode(
    records: Records, chat: ChatTemplate, max_length: int, cache: Path | None = None
) -> tuple[KeyedExamples, int]:
    """Tokenize records; see `encode_examples` for the cache.

    Returns:
        Examples by key, and how many records were skipped because they are too long, as in training.
    """
    table = encode_examples(records, chat, None, max_length, is_teacher=True, cache=cache)
    return KeyedExamples(table), len(records) - len(table)


def remove_unused(data: Path, fingerprint: str, used: set[str]) -> None:
    """Remove the signals of other teachers and settings, and shards without a current record."""
    for folder in data.iterdir():
        if folder.name != fingerprint:
            shutil.rmtree(folder)
    for path in (data / fingerprint).glob("[0-9]*.safetensors"):
        if path.name not in used:
            path.unlink()


def check_storage(data: Path, shape: SignalShape, tokens: int, missing: int) -> None:
    """Log the size of the signal, and check that the disk has room for the missing part.

    Args:
        data: folder of the shards.
        shape: what the signal stores of each token.
        tokens: completion tokens of all records.
        missing: completion tokens of the records that are not cached.

    Raises:
        InputError: the disk is too full.
    """
    logger.info("%s", describe_storage(str(data), shape, tokens))
    needed = shape.bytes_per_token * missing
    logger.info("%s to compute, %s free on the disk", format_bytes(needed), format_bytes(find_free(data)))
    advice = "set `signals` to a folder on another disk, or choose signal topk with a smaller top_k"
    check_free({data: needed}, "the teacher signal", advice)


def compute_missing(
    options: Options,
    chat: ChatTemplate,
    shape: SignalShape,
    vocabulary: int,
    examples: KeyedExamples,
    data: Path,
    cached: dict[str, Any],
    reporter: Reporter,
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Compute the signals that are not cached.

    Args:
        options: options of compute_signal.py by name.
        chat: the teacher's chat template.
        shape: what the signal stores of each token.
        vocabulary: size of the teacher's tokenizer's vocabulary.
        examples: all records by key.
        data: folder of the shards.
        cached: places of the cached records by key.
        reporter: shows the progress in trackers.

    Returns:
        Places of the new records by key, and time, speed and peak memory of this run.
    """
    missing = [key for key in examples if key not in cached]
    if not missing and (options["kind"] == "topk" or (data / HEAD).exists()):
        return {}, {"seconds": 0.0, "tokens_per_second": 0.0, "peak_memory_mb": 0, "peak_reserved_mb": 0}
    with closing(load_teacher(options, chat, vocabulary)) as teacher:
        return compute_records(options, teacher, shape, missing, examples, data, cached, reporter)


def compute_records(
    options: Options,
    teacher: SignalTeacher | ServedTeacher,
    shape: SignalShape,
    missing: Sequence[str],
    examples: KeyedExamples,
    data: Path,
    cached: dict[str, Any],
    reporter: Reporter,
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Compute the signals of the records with these keys by a loaded teacher; see `compute_missing`."""
    if options["kind"] == "hidden" and not (data / HEAD).exists():
        save_whole(data / HEAD, teacher.read_head())
    check_cached(shape, teacher, examples, data, cached)
    all_lengths = examples.get_lengths("prompt", "completion")
    lengths = {key: all_lengths[key] for key in missing}
    teacher.check_lengths(list(lengths.values()))
    order = sorted(missing, key=lambda key: -lengths[key])
    writer = ShardWriter(data, shape)
    known, total = len(examples) - len(missing), sum(lengths.values())

    def read_memory() -> int:
        return teacher.read_peaks()["peak_reserved_mb"]

    progress = Progress(len(examples), "teacher signals", done=known, work=total, memory=read_memory, reporter=reporter)

    def work(rows: list[int]) -> list[tuple[str, dict[str, Tensor]]]:
        keys = [order[row] for row in rows]
        return list(zip(keys, teacher.compute([examples[key] for key in keys]), strict=True))

    for batch in in_batches(list(range(len(order))), work, teacher.batch_size):
        for key, tensors in batch:
            writer.add(key, tensors)
        tokens = sum(len(tensors["completion"]) for _, tensors in batch)
        progress.add(len(batch), tokens, sum(lengths[key] for key, _ in batch))
    writer.flush()
    progress.close()
    figures = {"seconds": round(progress.seconds, 3), "tokens_per_second": round(progress.tokens_per_second, 1)}
    return writer.places, figures | teacher.read_peaks()


def load_teacher(options: Options, chat: ChatTemplate, vocabulary: int) -> SignalTeacher | ServedTeacher:
    """Load the teacher that the engine of the options runs.

    Args:
        options: options of compute_signal.py by name.
        chat: the teacher's chat template.
        vocabulary: size of the tokenizer's vocabulary.
    """
    if ENGINES[options["engine"]].is_served:
        return ServedTeacher(options, chat, vocabulary)
    return SignalTeacher(options, chat.tokenizer, vocabulary)


def check_cached(
    shape: SignalShape,
    teacher: SignalTeacher | ServedTeacher,
    examples: KeyedExamples,
    data: Path,
    cached: dict[str, Any],
) -> None:
    """Recompute a few cached records, before new ones are added to them.

    Raises:
        InputError: a cached signal differs by more than rounding.
    """
    for key in sorted(set(cached) & set(examples))[:COMPARED]:
        shard, start, rows = cached[key]
        with open_shard(data / shard, shape.kind) as file:
            signal = read_signal(file, shape, start, rows)
        found, _ = teacher.compare(examples[key], signal)
        if not found <= TOLERANCE:
            raise InputError(
                f"{data / shard}: expected the signal of this teacher, found one that diverges by {found:.3g} nats per "
                f"token (uid {examples[key]['uid']}; rounding explains {TOLERANCE}); delete {data} to recompute it"
            )


def measure_tails(reader: SignalReader) -> dict[str, float]:
    """Return the mean probability outside the k most likely tokens by temperature; warn if it is large."""
    places = reader.records.values()
    parts = [reader.open_shard(shard).read_rows("log_tail", start, rows) for shard, start, rows, _ in places]
    tails = torch.cat(parts).double().exp().mean(0).tolist()
    found = {f"{at:g}": round(tail, 4) for at, tail in zip(reader.temperatures, tails, strict=True)}
    for at, tail in found.items():
        if tail > LARGE_TAIL and not reader.tail_samples:
            logger.warning(
                "at temperature %s, the %d most likely tokens have %.0f %% of the probability; students see the rest "
                "as one bucket. A lower temperature, a larger top_k or signal hidden is closer to the teacher.",
                at,
                reader.top_k,
                100 * (1 - tail),
            )
    return found


def compute_signal(options: Options, train: Records, val: Records) -> None:
    """Compute the signals that are not cached, and write the folder's index.json and stats.json.

    Args:
        options: options of compute_signal.py by name.
        train, val: records of the splits, from `read_split` or a `SplitReader`.

    Raises:
        InputError: all records are too long, the disk is too full, or the cached signal is another teacher's.
    """
    out = Path(options["out"])
    chat = load_options_chat(options)
    parts = get_parts(options, chat)
    fingerprint = digest_of(parts)[:16]
    folder = open_data(out, options.get("store"))
    data = folder / fingerprint
    data.mkdir(parents=True, exist_ok=True)
    logger.info("tokenizing %d records", len(train) + len(val))
    records = JoinedRecords(train, val)
    examples, left_out = encode(records, chat, options["max_length"], options.get("examples"))
    cached = scan_shards(data, options["kind"])
    config = load_config(options["model"]) if ENGINES[options["engine"]].loads_weights else None
    width = config.get_text_config().hidden_size if config and options["kind"] == "hidden" else None
    shape = make_shape(options, width, parts["vocabulary"])
    sizes = examples.get_lengths("completion")
    check_storage(data, shape, sum(sizes.values()), sum(size for key, size in sizes.items() if key not in cached))
    with make_reporter(options, fingerprint, sorted(examples)) as reporter:
        new, figures = compute_missing(options, chat, shape, parts["vocabulary"], examples, data, cached, reporter)
    write_json(data / FILES, stat_files(options["model"], options["adapter"]))
    places = {key: (cached | new)[key] for key in examples}
    uids = examples.get_uids()
    listed = {key: [*places[key], uids[key]] for key in sorted(places)}
    names = {name: options[name] for name in ("model", "adapter")}
    facts: dict[str, Any] = {"width": width} | ({"logits": asdict(read_transform(config))} if config else {})
    write_json(out / INDEX, {"fingerprint": fingerprint, "parts": parts, "names": names, **facts, "records": listed})
    remove_unused(folder, fingerprint, {place[0] for place in places.values()})
    counts = {"records": len(examples), "from_cache": len(examples) - len(new), "computed": len(new)}
    logger.info("%d records = %d from the cache + %d computed; %d skipped", *counts.values(), left_out)
    stored = measure_storage(SignalReader(out), sum(sizes.values()))
    write_json(out / "stats.json", counts | {"left_out": left_out} | stored | figures)


def make_reporter(options: Options, fingerprint: str, keys: Sequence[str]) -> Reporter:
    """The job's run in the trackers.

    Args:
        options: options of compute_signal.py by name.
        fingerprint: of the teacher and what the signal stores.
        keys: of all records.
    """
    names = ("engine", "model", "adapter", "dtype", "quantization", "kind", "top_k", "temperatures", "tail_samples")
    config = {name: options[name] for name in (*names, "max_length")} | {"records": len(keys)}
    trackers = TrackerOptions(options["report_to"], options["tracking_project"])
    name = "/".join(Path(options["out"]).absolute().parts[-3:])
    return Reporter(trackers, "compute_signal", name, digest_of([fingerprint, *keys]), config)


def load_options_chat(options: Options) -> ChatTemplate:
    """Load the teacher's chat template from the options of a script."""
    source = options.get("tokenizer") or options["model"]
    return load_chat(source, options["template_arguments"], options["template_date"])


def get_parts(options: Options, chat: ChatTemplate) -> dict[str, Any]:
    """Return everything except the records that determines the signal; see `fingerprint_parts`."""
    serving = describe_serving(options["engine"], options.get("vllm_arguments") or {})
    return fingerprint_parts(
        **{name: options[name] for name in ("kind", "top_k", "temperatures", "tail_samples", "quantization")},
        weights=fingerprint_teacher(options["model"], options["adapter"], serving),
        serving=serving,
        dtype=select_dtype(options["dtype"], select_device(options["device"])),
        chat=chat,
    )


def make_shape(options: Options, width: int | None, vocabulary: int) -> SignalShape:
    """Return what a signal stores of each token, from the options of compute_signal.py."""
    settings = {name: options[name] for name in ("kind", "top_k", "temperatures", "tail_samples")}
    return SignalShape(**settings, width=width, vocabulary=vocabulary)


def measure_storage(reader: SignalReader, tokens: int) -> dict[str, Any]:
    """Return the counts of stats.json that describe the signal's size and, for `topk`, its tails."""
    size = reader.shape.bytes_per_token
    stored: dict[str, Any] = {"tokens": tokens, "bytes_per_token": size, "bytes": size * tokens}
    if reader.kind == "topk":
        stored["tail_probability"] = measure_tails(reader)
    return stored


def compare_signal(options: Options, records: Records) -> list[tuple[str, int, float, float]]:
    """Compare a sample of a signal's records with the live teacher.

    Args:
        options: options of check_signal.py by name.
        records: records of the splits.

    Returns:
        (uid, tokens, divergence, largest difference) of each record; see `SignalTeacher.compare`.

    Raises:
        InputError: the signal's fingerprint is another teacher's, or it contains none of the records.
    """
    reader = SignalReader(options["signal"])
    chat = load_options_chat(options)
    source = {name: options[name] for name in ("model", "adapter", "quantization")}
    source["serving"] = describe_serving(options["engine"], options.get("vllm_arguments") or {})
    layout = {name: getattr(reader, name) for name in ("kind", "top_k", "temperatures", "tail_samples")}
    check_signal_fits(
        reader,
        kind=reader.kind,
        top_k=reader.top_k,
        tail_samples=reader.tail_samples,
        temperature=(reader.temperatures or [1.0])[0],
        dtype=select_dtype(options["dtype"], select_device(options["device"])),
        chat=chat,
        **source,
    )
    examples, _ = encode(records, chat, options["max_length"], None)
    found = sorted(key for key in examples if key in reader)
    if not found:
        raise InputError(f"{reader.path}: expected signals of the records in {options['data']}, found none of them")
    chosen = random.Random(options["seed"]).sample(found, min(options["records"], len(found)))
    with closing(load_teacher(options | layout | {"out": reader.folder}, chat, reader.vocabulary)) as teacher:
        return [
            (examples[key]["uid"], len(examples[key]["completion"]), *teacher.compare(examples[key], reader.read(key)))
            for key in chosen
        ]
