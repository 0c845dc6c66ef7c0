"""Records as what a student learns: examples, and the teacher's side of them."""

import os
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from distill.common.errors import InputError
from distill.common.hashing import hash_uid
from distill.models.chat import shared_vocabulary_size
from distill.models.examples import Example, encode_examples
from distill.models.fingerprint import fingerprint_model
from distill.models.load import load_model, load_tokenizer, select_dtype
from distill.student.fsdp import shard_teacher
from distill.student.teacher_signal import HiddenSignal, OnlineTeacher, Signal, TopKSignal
from distill.teacher.signal_files import SignalReader, check_signal_fits, signal_key

Record = dict[str, Any]


@dataclass
class LoadedTeacher:
    """What a training knows of its teacher.

    Attributes:
        vocabulary: ids that it shares with the student.
        signal: its side of a micro-batch.
        readers: of its cached signals, one a folder of data; empty for a teacher in memory.
        fingerprints: digests that stand for it in the run's own.
    """

    tokenizer: Any
    vocabulary: int
    signal: Signal
    readers: list[SignalReader]
    fingerprints: list[str]


def load_teacher(options: dict[str, Any], tokenizer: Any, device: torch.device) -> LoadedTeacher | None:
    """The teacher in memory, or its cached signals, of which no weights are read; None for seqkd.

    Raises:
        InputError: it does not share the student's tokenizer, or a signal is another teacher's.
    """
    if options["method"] == "seqkd":
        return None
    teacher_tokenizer = load_tokenizer(options["teacher_model"])
    vocabulary = shared_vocabulary_size(teacher_tokenizer, tokenizer)
    dtype = select_dtype(options["teacher_dtype"], device)
    source = {name: options[f"teacher_{name}"] for name in ("model", "quantization")}
    adapters = options["teacher_adapter"] or [None]
    if options["signal"] == "online":
        online = load_online(options, dtype, teacher_tokenizer.pad_token_id, device)
        fingerprint = fingerprint_model(source["model"], adapters[0])
        return LoadedTeacher(teacher_tokenizer, vocabulary, online, [], [fingerprint])
    readers = [SignalReader(folder) for folder in options["signal_folders"]]
    for reader, adapter in zip(readers, cycle(adapters), strict=False):
        wanted: dict[str, Any] = {"kind": options["signal"], "top_k": options["top_k"], "dtype": dtype}
        check_signal_fits(
            reader, **wanted, temperature=options["temperature"], adapter=adapter, tokenizer=teacher_tokenizer, **source
        )
    cached: Signal = (
        HiddenSignal(readers, training_device(device), dtype)
        if options["signal"] == "hidden"
        else TopKSignal(readers, options["temperature"])
    )
    return LoadedTeacher(teacher_tokenizer, vocabulary, cached, readers, [reader.fingerprint for reader in readers])


def load_online(options: dict[str, Any], dtype: torch.dtype, pad_id: int, device: torch.device) -> OnlineTeacher:
    """The teacher in memory; with strategy fsdp its decoder is shared out among the processes as the student is.

    One that is quantized is whole in each process: its numbers cannot be dealt out.
    """
    name, quantization, adapters = (options[f"teacher_{key}"] for key in ("model", "quantization", "adapter"))
    place = training_device(device) if is_distributed(device) else device
    is_shared = options["strategy"] == "fsdp" and quantization == "none" and int(os.environ["WORLD_SIZE"]) > 1
    loading = torch.device("cpu") if is_shared else place
    model = load_model(name, loading, dtype, quantization, (adapters or [None])[0], for_generation=False)
    if is_shared:
        shard_teacher(model, place, options["fsdp_offload"])
    return OnlineTeacher(model, pad_id, place if is_shared else model.device, is_shared)


def is_distributed(device: torch.device) -> bool:
    """Whether this process is one of several, each with a GPU of its own."""
    return device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1


def training_device(device: torch.device) -> torch.device:
    """This process's own GPU, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def encode_folders(
    folders: list[list[Record]], tokenizer: Any, teacher: LoadedTeacher | None, options: dict[str, Any]
) -> list[Example]:
    """The examples of all folders of data, each with its folder's number and, where it is cached, its signal's key.

    Raises:
        InputError: a record has no signal.
    """
    found = []
    for number, records in enumerate(folders):
        known = teacher.tokenizer if teacher else None
        vocabulary = teacher.vocabulary if teacher else None
        examples = encode_examples(records, tokenizer, known, options["max_length"], vocabulary)
        if teacher and teacher.readers:
            add_signals(examples, teacher.readers[number], number)
        found += [example | {"folder": number} for example in examples]
    return found


def add_signals(examples: list[Example], reader: SignalReader, number: int) -> None:
    """Give each example the place of its signal, by content: prompt and answer as the teacher reads them.

    Raises:
        InputError: some have none; names one.
    """
    for example in examples:
        example["signal"] = (number, signal_key(example["teacher_prompt"], example["completion"]))
    missing = [example for example in examples if example["signal"][1] not in reader]
    if missing:
        raise InputError(
            f"{reader.folder}: expected the teacher signal of every record, {len(missing)} of {len(examples)} have "
            f"none, first uid {missing[0]['uid']}: splits, or how an answer ends in the template, "
            "are not those that it was computed for; run compute_signal again (snakemake does where the splits changed)"
        )


def balance(examples: list[Example], seed: int) -> list[Example]:
    """As many examples of each folder as the largest has, those of smaller ones several times."""
    folders: dict[int, list[Example]] = {}
    for example in examples:
        folders.setdefault(example["folder"], []).append(example)
    most = max(map(len, folders.values()), default=0)
    found = []
    for number, mine in folders.items():
        order = sorted(mine, key=lambda one: hash_uid(f"balance{number}", seed, one["uid"]))
        found += [dict(one) for one in mine * (most // len(mine)) + order[: most % len(mine)]]
    return found
