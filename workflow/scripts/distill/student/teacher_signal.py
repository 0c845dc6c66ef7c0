"""The teacher's side of a micro-batch: a teacher in memory, or its cached signal."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from distill.models.completions import collate, decoder_and_head, read_batch, take_rows, to_device
from distill.models.example_table import Example
from distill.models.logits import LogitTransform, read_transform
from distill.student.aligned_loss import AlignedTeacher
from distill.student.loss import CachedTeacher, ExactTeacher, MixedTeacher, SampledTeacher, TopKTeacher
from distill.teacher.signal_files import SignalReader, topk_at


class Signal(Protocol):
    """The teacher's side of a micro-batch.

    Attributes:
        is_sharded: whether the teacher's weights are sharded, so that all ranks must call it for every micro-batch.
    """

    is_sharded: bool

    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> ExactTeacher | MixedTeacher | CachedTeacher | AlignedTeacher:
        """The teacher at each completion position, in the order of the examples.

        Args:
            examples: the micro-batch, not empty.
            batch: the student's tensors from `collate`.
            device: device of the student.
        """


class OnlineTeacher:
    """A teacher in memory, run on every micro-batch with its own chat template and data type.

    Args:
        model: the teacher in evaluation mode.
        pad_id: its padding token id.
        device: where it computes; by default where its weights are.
        is_sharded: whether its weights are sharded over the ranks.
        row_length: see `collate`.
    """

    def __init__(
        self,
        model: Any,
        pad_id: int,
        device: torch.device | None = None,
        is_sharded: bool = False,
        row_length: int | None = None,
    ):
        self.decoder, self.head = decoder_and_head(model)
        self.transform = read_transform(model.config)
        self.device, self.pad_id, self.is_sharded = device or model.device, pad_id, is_sharded
        self.row_length = row_length

    @torch.no_grad()
    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> ExactTeacher:
        """The hidden states that the teacher computes now."""
        prompts = [example["teacher_prompt"] for example in examples]
        if prompts != [example["prompt"] for example in examples]:
            completions = [example["completion"] for example in examples]
            batch = to_device(collate(prompts, completions, self.pad_id, self.row_length), self.device)
        with torch.autocast(device.type, enabled=False):  # mixed precision is for the student only
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            rows = take_rows(read_batch(self.decoder, batch), batch["positions"])
        return ExactTeacher(rows, self.head, self.transform)


class HiddenSignal:
    """Cached hidden states, and the teachers' heads; equal heads are loaded once.

    Args:
        readers: one per data folder; the first item of an example's `signal` is the index of its reader.
        device: device of the heads.
        dtypes: data type of each reader's head.

    Attributes:
        heads: different heads, each with what its teacher does to the logits behind it.
        numbers: index of each reader's head.
    """

    is_sharded = False

    def __init__(self, readers: Sequence[SignalReader], device: torch.device, dtypes: Sequence[torch.dtype]):
        self.readers = readers
        self.heads: list[tuple[torch.nn.Linear, LogitTransform]] = []
        self.numbers: list[int] = []
        for reader, dtype in zip(readers, dtypes, strict=True):
            own = reader.head(device, dtype), reader.transform
            known = [number for number, other in enumerate(self.heads) if are_equal(own, other)]
            self.numbers.append(known[0] if known else len(self.heads))
            self.heads += [] if known else [own]

    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> ExactTeacher | MixedTeacher:
        """The cached hidden states; of several teachers if the examples belong to several heads."""
        states = [self.readers[reader].read(key)["hidden"] for reader, key in (one["signal"] for one in examples)]
        numbers = [self.numbers[one["signal"][0]] for one in examples]
        if len(set(numbers)) == 1:
            return self.make_teacher(numbers[0], states, device)
        # (rows,) index of the head of each row
        heads = torch.tensor(numbers).repeat_interleave(torch.tensor([len(one) for one in states]))
        parts = []
        for number in sorted(set(numbers)):
            own = [one for one, other in zip(states, numbers, strict=True) if other == number]
            index = to_device({"index": (heads == number).nonzero().flatten()}, device)["index"]
            parts.append((index, self.make_teacher(number, own, device)))
        return MixedTeacher(tuple(parts))

    def make_teacher(self, number: int, states: Sequence[torch.Tensor], device: torch.device) -> ExactTeacher:
        """The (rows, width) hidden states of several records with the same head."""
        rows = to_device({"rows": torch.cat([*states])}, device)["rows"]
        return ExactTeacher(rows, *self.heads[number])


def are_equal(one: tuple[torch.nn.Linear, LogitTransform], other: tuple[torch.nn.Linear, LogitTransform]) -> bool:
    """Whether two heads give the same logits: equal weights of the same data type, and the same transform."""
    mine, theirs = one[0].state_dict(), other[0].state_dict()
    return (
        one[1] == other[1]
        and mine.keys() == theirs.keys()
        and all(mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine)
    )


class TopKSignal:
    """Cached log-probabilities of the teacher's k most likely tokens, and a sample of the others if it is cached.

    Args:
        readers: see HiddenSignal; `temperature` is one of the temperatures that each has cached.
        temperature: temperature of the distribution.
    """

    is_sharded = False

    def __init__(self, readers: Sequence[SignalReader], temperature: float):
        self.readers, self.temperature = readers, temperature

    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> CachedTeacher:
        """The cached log-probabilities at the temperature."""
        found = []
        for number, key in (one["signal"] for one in examples):
            reader = self.readers[number]
            record = reader.read(key)
            place = reader.temperatures.index(self.temperature)
            tail = {name: record[name][:, place] for name in record if "tail" in name}
            found.append({"ids": record["ids"], "logprobs": record["logprobs"]} | tail)
        parts = to_device({name: torch.cat([one[name] for one in found]) for name in found[0]}, device)
        return make_cached_teacher(parts, self.temperature)


def make_cached_teacher(parts: dict[str, torch.Tensor], temperature: float) -> CachedTeacher:
    """The teacher of cached log-probabilities.

    Args:
        parts: `ids`, `logprobs` and, at the temperature alone, `log_tail` and the sample of a `topk` signal, if any.
        temperature: the temperature.
    """
    top = TopKTeacher(parts["ids"], *topk_at(parts["logprobs"], parts["log_tail"], temperature))
    return SampledTeacher(*top, parts["tail_ids"], parts["tail_entropy"]) if "tail_ids" in parts else top
