"""Training examples, and the teacher's side of them: loading, signals, balance between categories."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from distill.common.errors import InputError
from distill.common.hashing import hash_uid
from distill.models.chat import ChatTemplate
from distill.models.example_table import Example, ExampleTable
from distill.models.examples import encode_examples
from distill.models.fingerprint import fingerprint_model
from distill.models.load import load_chat, load_config, load_model, select_dtype
from distill.models.packing_check import check_packing
from distill.models.rope import check_lengths
from distill.models.token_alignment import TokenAlignment
from distill.models.vocabulary import check_tokenizers_differ, shared_vocabulary_size
from distill.records.split_reader import Records
from distill.student.cross_tokenizer import CrossTokenizerSignal
from distill.student.fsdp import shard_teacher
from distill.student.options import TrainOptions
from distill.student.student_run import StudentRun, TeacherSource
from distill.student.teacher_signal import HiddenSignal, OnlineTeacher, Signal, TopKSignal
from distill.student.template_check import compare_ends, compare_templates
from distill.teacher.signal_files import SignalReader, check_signal_fits, signal_key

logger = logging.getLogger(__name__)


@dataclass
class LoadedTeacher:
    """The teacher of a training run.

    Attributes:
        chats: its chat template, or that of each data folder if these have different teachers.
        vocabulary: number of token ids that it shares with the student; of several teachers, the smallest. With an
            alignment, of the student's own.
        signal: its side of a micro-batch.
        readers: its cached signals, one per data folder; empty for a teacher in memory.
        fingerprints: digests of its weights or signals, for the digest of the run.
        alignment: of its tokens with those of the student, if it has another tokenizer.
    """

    chats: list[ChatTemplate]
    vocabulary: int
    signal: Signal
    readers: list[SignalReader]
    fingerprints: list[str]
    alignment: TokenAlignment | None = None

    def get_chat(self, folder: int) -> ChatTemplate:
        """The chat template of the teacher of a data folder."""
        return self.chats[folder if len(self.chats) > 1 else 0]


def load_teacher(run: StudentRun, student: ChatTemplate, device: torch.device) -> LoadedTeacher | None:
    """The teacher in memory, or its cached signals without its weights; None for a method without a divergence.

    Args:
        run: the options.
        student: the student's chat template.
        device: device of the training.

    Raises:
        InputError: the teacher does not share the student's tokenizer, or does with `cross_tokenizer`, or a signal
            belongs to another teacher or has another end of turn than the student's.
    """
    source = run.teacher
    if source is None:
        return None
    sources = [source] if run.objective.signal == "online" else source.list_by_folder()
    chats = load_chats(sources, run.template_date)
    if not run.objective.cross_tokenizer:
        vocabulary = min(share_vocabulary(chat, student) for chat in chats)
        return load_signal(run, sources, student, chats, vocabulary, device)
    if any(chat is not chats[0] for chat in chats):
        raise InputError("cross_tokenizer: expected one teacher for all records, found several")
    check_tokenizers_differ(chats[0].tokenizer, student.tokenizer, count_rows(chats[0], student))
    alignment = TokenAlignment(student, chats[0])
    logger.info("%s", alignment.describe())
    loaded = load_signal(run, sources, student, chats, len(alignment.groups.student), device)
    signal = CrossTokenizerSignal(loaded.signal, alignment.groups, run.objective.temperature)
    return replace(loaded, signal=signal, alignment=alignment)


def load_signal(
    run: StudentRun,
    sources: Sequence[TeacherSource],
    student: ChatTemplate,
    chats: list[ChatTemplate],
    vocabulary: int,
    device: torch.device,
) -> LoadedTeacher:
    """The teacher with its signal of its own tokens; see `load_teacher`."""
    if run.objective.signal == "online":
        (source,), (chat,) = sources, chats
        online = load_online(source, run.train, chat.tokenizer.pad_token_id, device)
        fingerprint = fingerprint_model(source.model, next(iter(source.adapters), None))
        return LoadedTeacher(chats, vocabulary, online, [], [fingerprint])
    readers = open_signals(run, sources, chats, device)
    ends = [] if run.objective.cross_tokenizer else [end for chat in chats for end in compare_ends(student, chat)]
    if ends:
        problem = f"{ends[0]} A cached signal has the teacher's token there: use signal online"
        raise InputError(f"signal {run.objective.signal}: {problem}")
    cached: Signal = (
        HiddenSignal(readers, local_device(device), [select_dtype(one.dtype, device) for one in sources])
        if run.objective.signal == "hidden"
        else TopKSignal(readers, run.objective.temperature)
    )
    return LoadedTeacher(chats, vocabulary, cached, readers, [reader.fingerprint for reader in readers])


def load_chats(sources: Sequence[TeacherSource], date: str) -> list[ChatTemplate]:
    """The chat templates of the teachers; teachers with the same one share it."""
    loaded: list[tuple[Any, ChatTemplate]] = []
    found = []
    for source in sources:
        key = source.tokenizer or source.model, source.template_arguments
        chat = next((chat for other, chat in loaded if other == key), None)
        if chat is None:
            chat = load_chat(*key, date)
            loaded.append((key, chat))
        found.append(chat)
    return found


def share_vocabulary(teacher: ChatTemplate, student: ChatTemplate) -> int:
    """The size of the vocabulary that a teacher shares with the student; see `shared_vocabulary_size`."""
    return shared_vocabulary_size(teacher.tokenizer, student.tokenizer, count_rows(teacher, student))


def count_rows(teacher: ChatTemplate, student: ChatTemplate) -> int | None:
    """The rows of the smaller embedding; None if neither is known."""
    return min((one.rows for one in (teacher, student) if one.rows is not None), default=None)


def open_signals(
    run: StudentRun, sources: Sequence[TeacherSource], chats: Sequence[ChatTemplate], device: torch.device
) -> list[SignalReader]:
    """The cached signals of all data folders.

    Args:
        run: the options.
        sources: the teacher of each folder.
        chats: their chat templates.
        device: device of the training.

    Raises:
        InputError: a signal belongs to another teacher.
    """
    readers = []
    for source, chat in zip(sources, chats, strict=True):
        reader = SignalReader(*source.signal_folders)
        readers.append(reader)
        check_signal_fits(
            reader,
            kind=run.objective.signal,
            top_k=run.objective.top_k,
            tail_samples=run.objective.tail_samples,
            temperature=run.objective.temperature,
            model=source.model,
            adapter=next(iter(source.adapters), None),
            dtype=select_dtype(source.dtype, device),
            quantization=source.quantization,
            chat=chat,
            serving=source.serving,
        )
    return readers


def load_online(source: TeacherSource, train: TrainOptions, pad_id: int, device: torch.device) -> OnlineTeacher:
    """The teacher in memory; with strategy fsdp its decoder is sharded as the student is.

    A quantized teacher is replicated on all ranks, since bitsandbytes weights cannot be sharded.
    """
    place = local_device(device) if is_distributed(device) else device
    is_sharded = train.strategy == "fsdp" and source.quantization == "none" and int(os.environ["WORLD_SIZE"]) > 1
    model = load_model(
        source.model,
        torch.device("cpu") if is_sharded else place,
        select_dtype(source.dtype, device),
        source.quantization,
        next(iter(source.adapters), None),
        for_generation=False,
    )
    if train.row_length is not None:
        check_packing(source.model, model, train.row_length)
    if is_sharded:
        shard_teacher(model, place, train.fsdp_offload)
    return OnlineTeacher(model, pad_id, place if is_sharded else model.device, is_sharded, train.row_length)


def is_distributed(device: torch.device) -> bool:
    """Whether this process is one of several with a GPU each."""
    return device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_device(device: torch.device) -> torch.device:
    """The GPU of this rank, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


class TrainingExamples(Sequence[Example]):
    """The examples of all data folders, each converted to lists of token ids when it is read.

    An example has, besides the fields of `encode_examples`, the index of its `folder`, with cached signals `signal`
    (index of the reader, key), and `index`, its place in a numbered sequence.

    Args:
        tables: examples by data folder.
        order: (examples,) row of each example in the tables, one after another; by default all rows in order. A row may
            occur several times.
        has_signals: whether the examples have cached signals.
        is_numbered: whether the examples have an `index`.
    """

    def __init__(
        self,
        tables: Sequence[ExampleTable],
        order: np.ndarray | None = None,
        has_signals: bool = False,
        is_numbered: bool = False,
    ):
        self.tables, self.order = tables, order
        self.has_signals, self.is_numbered = has_signals, is_numbered
        self.ends = np.cumsum([len(table) for table in tables], dtype=np.int64)  # of each table's rows

    def __len__(self) -> int:
        if self.order is not None:
            return len(self.order)
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError
        row = place if self.order is None else int(self.order[place])
        folder = int(np.searchsorted(self.ends, row, side="right"))
        table = self.tables[folder]
        return self.complete(table[row - int(self.ends[folder]) + len(table)], folder, place)

    def __iter__(self) -> Iterator[Example]:
        if self.order is not None:
            yield from (self[place] for place in range(len(self)))
            return
        place = 0
        for folder, table in enumerate(self.tables):
            for example in table:
                yield self.complete(example, folder, place)
                place += 1

    def complete(self, example: Example, folder: int, place: int) -> Example:
        """Add the fields that do not stand in the table."""
        example["folder"] = folder
        if self.has_signals:
            example["signal"] = (folder, get_signal_key(example))
        if self.is_numbered:
            example["index"] = place
        return example

    def get_lengths(self, *columns: str) -> np.ndarray:
        """Number of tokens of each example in some columns together, (examples,); the tokens are not read."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(table.get_lengths(*columns) for table in self.tables)])
        return lengths if self.order is None else lengths[self.order]

    def get_folders(self) -> np.ndarray:
        """The index of each example's folder, (examples,)."""
        folders = np.repeat(np.arange(len(self.tables)), [len(table) for table in self.tables])
        return folders if self.order is None else folders[self.order]

    def choose(self, places: np.ndarray) -> "TrainingExamples":
        """The examples at these places, in this order; a place may occur several times."""
        order = places if self.order is None else self.order[places]
        return TrainingExamples(self.tables, order, self.has_signals, self.is_numbered)

    def number(self) -> "TrainingExamples":
        """The same examples with an `index`."""
        return TrainingExamples(self.tables, self.order, self.has_signals, True)


def get_signal_key(example: Example) -> str:
    """The key of an example's cached signal: a digest of prompt and answer as the teacher reads them."""
    answer = "teacher_completion" if "teacher_completion" in example else "completion"
    return signal_key(example["teacher_prompt"], example[answer])


def encode_folders(
    folders: Sequence[Records],
    student: ChatTemplate,
    teacher: LoadedTeacher | None,
    max_length: int,
    *,
    what: str = "records",
    may_be_empty: bool = False,
    cache: Path | None = None,
) -> TrainingExamples:
    """The examples of all data folders, each with the index of its folder and the key of its cached signal, if any.

    Args:
        folders: records by data folder.
        student: the student's chat template.
        teacher: None for a method without a divergence.
        max_length: maximum length of prompt and completion together, in tokens.
        what, may_be_empty, cache: see `encode_examples`.

    Raises:
        InputError: a record has no signal, or a folder has no records left.
    """
    tables = []
    for number, records in enumerate(folders):
        chat, vocabulary = (teacher.get_chat(number), teacher.vocabulary) if teacher else (None, None)
        alignment = teacher.alignment if teacher else None
        settings: dict[str, Any] = {"what": what, "may_be_empty": may_be_empty, "cache": cache}
        table = encode_examples(records, student, chat, max_length, vocabulary, alignment=alignment, **settings)
        if teacher and teacher.readers:
            check_signals(table, teacher.readers[number])
        tables.append(table)
    return TrainingExamples(tables, has_signals=bool(teacher and teacher.readers))


def compare_teachers(examples: TrainingExamples, student: ChatTemplate, teacher: LoadedTeacher) -> list[str]:
    """What differs between the chat templates of the student and of each teacher, see `compare_templates`.

    Args:
        examples: from `encode_folders` with the teacher.
        student: the student's chat template.
        teacher: the teacher, or the teachers of several data folders.
    """
    found = []
    for number, chat in enumerate(teacher.chats):
        if any(other is chat for other in teacher.chats[:number]):
            continue
        folders = [folder for folder in range(len(examples.tables)) if teacher.get_chat(folder) is chat]
        members = examples.choose(np.flatnonzero(np.isin(examples.get_folders(), folders)))
        warnings = compare_templates(members, student, chat)
        found += warnings if len(members) == len(examples) else [f"{chat.name}: {warning}" for warning in warnings]
    return found


def check_positions(run: StudentRun, examples: Iterable[TrainingExamples]) -> None:
    """Check that the position embeddings of a record do not depend on other records.

    Args:
        run: the options.
        examples: the examples of each split.

    Raises:
        InputError: see `check_lengths`.
    """
    # With fsdp, all ranks call the model equally often; a packed row has records of any length.
    can_split = not run.train.packing and (run.train.strategy != "fsdp" or run.train.batch_size == 1)
    models = {"prompt": ("the student", run.model)}
    if run.teacher and run.objective.signal == "online":
        models["teacher_prompt"] = ("the teacher", run.teacher.model)
    kept = list(examples)
    for prompt, (what, model) in models.items():
        answer = "teacher_completion" if prompt == "teacher_prompt" and run.objective.cross_tokenizer else "completion"
        found = np.concatenate([one.get_lengths(prompt, answer) for one in kept])
        lengths = [int(found.min()), int(found.max())] if len(found) else []
        lengths += [run.train.max_length] if run.on_policy.fraction else []  # sampled answers may be as long
        check_lengths(load_config(model), lengths, what, can_split)


def check_signals(examples: ExampleTable, reader: SignalReader) -> None:
    """Check that the examples of a data folder have cached signals.

    Args:
        examples: examples of a data folder.
        reader: signal of the folder.

    Raises:
        InputError: examples without a signal; names the first.
    """
    missing, first = 0, ""
    for example in examples:
        if get_signal_key(example) not in reader:
            missing, first = missing + 1, first or example["uid"]
    if missing:
        raise InputError(
            f"{reader.folder}: expected the teacher signal of every record, {missing} of {len(examples)} have "
            f"none, first uid {first}: the signal was computed for other splits, or the chat templates of "
            "student and teacher begin an answer with different tokens; run compute_signal again, or use signal online"
        )


def balance(examples: TrainingExamples, seed: int) -> TrainingExamples:
    """Repeat the examples of smaller folders until every folder has as many as the largest.

    Args:
        examples: from `encode_folders`.
        seed: decides which examples occur once more than others.
    """
    largest = max(map(len, examples.tables), default=0)
    found = [np.zeros(0, dtype=np.int64)]
    for number, (table, end) in enumerate(zip(examples.tables, examples.ends, strict=True)):
        if len(table):
            members = np.arange(end - len(table), end)
            hashes = [hash_uid(f"balance{number}", seed, uid) for uid in table.get_uids()]
            repeats, rest = divmod(largest, len(table))
            found += [np.tile(members, repeats), members[np.argsort(np.array(hashes, np.uint64), kind="stable")[:rest]]]
    return examples.choose(np.concatenate(found))
