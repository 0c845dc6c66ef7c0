"""Computing a category's teacher signal: once for each record, shard by shard, so that a stop loses nothing."""

import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import write_json
from distill.common.progress import Progress
from distill.models.batches import AUTO_BATCH_SIZE, in_batches
from distill.models.examples import Example, encode_examples
from distill.models.fingerprint import fingerprint_model
from distill.models.load import load_config, load_tokenizer, select_device, select_dtype
from distill.models.memory import memory_mb
from distill.teacher.signal_files import (
    FILES,
    HEAD,
    INDEX,
    SignalReader,
    check_signal_fits,
    fingerprint_parts,
    read_signal,
    signal_key,
    stat_files,
)
from distill.teacher.signal_shards import ShardWriter, save_whole, scan_shards
from distill.teacher.signal_size import bytes_per_token, describe_storage
from distill.teacher.signal_teacher import TOLERANCE, Options, SignalTeacher

logger = logging.getLogger(__name__)

COMPARED = 4  # cached records that are computed again where a run goes on
LARGE_TAIL = 0.1  # probability outside the k likeliest tokens from which on it is said that this is much


def encode(records: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> tuple[dict[str, Example], int]:
    """Examples by key, as the teacher reads them, and how many are left out for being too long, as in training."""
    examples = encode_examples(records, tokenizer, None, max_length)
    by_key = {signal_key(example["prompt"], example["completion"]): example for example in examples}
    return by_key, len(records) - len(examples)


def remove_unused(out: Path, fingerprint: str, used: set[str]) -> None:
    """Remove the signals of other teachers and settings, and shards of which no record is left."""
    for folder in (out / "data").iterdir():
        if folder.name != fingerprint:
            shutil.rmtree(folder)
    for path in (out / "data" / fingerprint).glob("[0-9]*.safetensors"):
        if path.name not in used:
            path.unlink()


def state_storage(options: Options, width: int | None, tokens: int, missing: int) -> None:
    """Say what the signal takes before it is computed.

    Raises:
        InputError: the disk has not enough room for what is missing.
    """
    kept = options["kind"], width, options["top_k"], options["temperatures"]
    logger.info("%s", describe_storage(str(options["out"]), *kept, tokens))
    needed = bytes_per_token(*kept) * missing
    free = shutil.disk_usage(options["out"]).free
    logger.info("%.3g GB of it to compute, %.3g GB free on the disk", needed / 1e9, free / 1e9)
    if needed > free:
        raise InputError(
            f"{options['out']}: expected {needed / 1e9:.3g} GB of free disk for the teacher signal, found "
            f"{free / 1e9:.3g}; choose signal topk with a smaller top_k, or another disk"
        )


def compute_missing(
    options: Options, tokenizer: Any, vocabulary: int, examples: dict[str, Example], data: Path, cached: dict[str, Any]
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Compute what is not cached; returns places of what is new, and figures of this run."""
    missing = [key for key in examples if key not in cached]
    if not missing and (options["kind"] == "topk" or (data / HEAD).exists()):
        return {}, {"seconds": 0.0, "tokens_per_second": 0.0, "peak_memory_mb": 0}
    teacher = SignalTeacher(options, tokenizer, vocabulary)
    if options["kind"] == "hidden" and not (data / HEAD).exists():
        save_whole(data / HEAD, teacher.effective_head())
    check_cached(options, teacher, examples, data, cached)
    order = sorted(missing, key=lambda key: -len(examples[key]["prompt"]) - len(examples[key]["completion"]))
    size = options["batch_size"] or AUTO_BATCH_SIZE[teacher.model.device.type]
    writer, progress = ShardWriter(data), Progress(len(examples), "teacher signals", done=len(examples) - len(missing))

    def work(rows: list[int]) -> list[tuple[str, dict[str, Tensor]]]:
        keys = [order[row] for row in rows]
        return list(zip(keys, teacher.compute([examples[key] for key in keys]), strict=True))

    for batch in in_batches(list(range(len(order))), work, size):
        for key, tensors in batch:
            writer.add(key, tensors)
        progress.add(len(batch), sum(len(tensors["completion"]) for _, tensors in batch))
    writer.flush()
    progress.close()
    figures = {"seconds": round(progress.seconds, 3), "tokens_per_second": round(progress.tokens_per_second, 1)}
    return writer.places, figures | {"peak_memory_mb": memory_mb(teacher.model.device)}


def check_cached(
    options: Options, teacher: SignalTeacher, examples: dict[str, Example], data: Path, cached: dict[str, Any]
) -> None:
    """Compute a few cached records again before others are put beside them.

    Raises:
        InputError: they differ by more than rounding.
    """
    for key in sorted(set(cached) & set(examples))[:COMPARED]:
        shard, start, rows = cached[key]
        with safe_open(str(data / shard), framework="pt") as file:
            kept = read_signal(file, options["kind"], start, rows)
        found, _ = teacher.compare(examples[key], kept)
        if not found <= TOLERANCE:
            raise InputError(
                f"{data / shard}: expected the signal of this very teacher, found one that diverges by {found:.3g} "
                f"nats a token (uid {examples[key]['uid']}; {TOLERANCE} is rounding); delete {data} to compute it anew"
            )


def measure_tails(reader: SignalReader) -> dict[str, float]:
    """Mean probability of all tokens but the k likeliest, by temperature; says so where it is large."""
    places = reader.records.values()
    parts = [reader.open_shard(shard).get_slice("log_tail")[start : start + rows] for shard, start, rows, _ in places]
    tails = torch.cat(parts).double().exp().mean(0).tolist()
    found = {f"{at:g}": round(tail, 4) for at, tail in zip(reader.temperatures, tails, strict=True)}
    for at, tail in found.items():
        if tail > LARGE_TAIL:
            logger.warning(
                "at temperature %s the %d likeliest tokens have %.0f %% of the probability, and students see the rest "
                "as one: a lower temperature, a larger top_k or signal hidden is nearer to the teacher",
                at,
                reader.top_k,
                100 * (1 - tail),
            )
    return found


def compute_signal(options: Options, train: list[dict[str, Any]], val: list[dict[str, Any]]) -> None:
    """Compute the signal of the records that have none yet, and write the folder's index.json and stats.json.

    Args:
        options: of compute_signal.py, by name.
        train, val: records of `read_split`.

    Raises:
        InputError: no record is short enough, the disk is too small, or what is cached is another teacher's.
    """
    out = Path(options["out"])
    tokenizer = load_tokenizer(options["model"])
    dtype = select_dtype(options["dtype"], select_device(options["device"]))
    names = {name: options[name] for name in ("model", "adapter")}
    parts = fingerprint_parts(
        **{name: options[name] for name in ("kind", "top_k", "temperatures", "quantization")},
        weights=fingerprint_model(options["model"], options["adapter"]),
        dtype=dtype,
        tokenizer=tokenizer,
    )
    fingerprint = digest_of(parts)[:16]
    data = out / "data" / fingerprint
    data.mkdir(parents=True, exist_ok=True)
    examples, left_out = encode([*train, *val], tokenizer, options["max_length"])
    cached = scan_shards(data)
    width = load_config(options["model"]).get_text_config().hidden_size if options["kind"] == "hidden" else None
    sizes = {key: len(example["completion"]) for key, example in examples.items()}
    missing = sum(size for key, size in sizes.items() if key not in cached)
    state_storage(options, width, sum(sizes.values()), missing)
    new, figures = compute_missing(options, tokenizer, parts["vocabulary"], examples, data, cached)
    write_json(data / FILES, stat_files(options["model"], options["adapter"]))
    places = {key: (cached | new)[key] for key in examples}
    records = {key: [*places[key], examples[key]["uid"]] for key in sorted(places)}
    index = {"fingerprint": fingerprint, "parts": parts, "names": names, "width": width, "records": records}
    write_json(out / INDEX, index)
    remove_unused(out, fingerprint, {place[0] for place in places.values()})
    size = bytes_per_token(options["kind"], width, options["top_k"], options["temperatures"])
    counts = {"records": len(examples), "from_cache": len(examples) - len(new), "computed": len(new)}
    logger.info("%d records = %d from the cache + %d computed; %d left out", *counts.values(), left_out)
    tokens = sum(sizes.values())
    stored: dict[str, Any] = {"tokens": tokens, "bytes_per_token": size, "bytes": size * tokens}
    if options["kind"] == "topk":
        stored["tail_probability"] = measure_tails(SignalReader(out))
    write_json(out / "stats.json", counts | {"left_out": left_out} | stored | figures)


def compare_signal(options: Options, records: list[dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    """(uid, tokens, divergence, largest difference) of a sample of a signal's records, by `SignalTeacher.compare`.

    Args:
        options: of check_signal.py, by name.

    Raises:
        InputError: the signal is of another teacher by its fingerprint, or has none of the records.
    """
    reader = SignalReader(options["signal"])
    tokenizer = load_tokenizer(options["model"])
    source = {name: options[name] for name in ("model", "adapter", "quantization")}
    kept = {"kind": reader.kind, "top_k": reader.top_k, "temperatures": reader.temperatures}
    check_signal_fits(
        reader,
        kind=reader.kind,
        top_k=reader.top_k,
        temperature=(reader.temperatures or [1.0])[0],
        dtype=select_dtype(options["dtype"], select_device(options["device"])),
        tokenizer=tokenizer,
        **source,
    )
    examples, _ = encode(records, tokenizer, options["max_length"])
    there = sorted(key for key in examples if key in reader)
    if not there:
        raise InputError(f"{reader.path}: expected signals of the records in {options['data']}, found none of them")
    chosen = random.Random(options["seed"]).sample(there, min(options["records"], len(there)))
    teacher = SignalTeacher(options | kept, tokenizer, reader.vocabulary)
    return [
        (examples[key]["uid"], len(examples[key]["completion"]), *teacher.compare(examples[key], reader.read(key)))
        for key in chosen
    ]
