"""What a student learns from besides the answers: a teacher in memory, or its cached signal."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from distill.common.errors import InputError
from distill.models.completions import collate, decoder_and_head, read_hidden, take_rows, to_device
from distill.models.examples import Example
from distill.student.loss import ExactTeacher, TopKTeacher
from distill.teacher.signal_files import SignalReader, topk_at


class Signal(Protocol):
    """The teacher's side of a micro-batch.

    Attributes:
        is_shared: all processes are needed for each micro-batch of any of them.
    """

    is_shared: bool

    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> ExactTeacher | TopKTeacher:
        """For each completion position of the examples, in their order.

        Args:
            examples: of the micro-batch, at least one.
            batch: the student's tensors, of `collate`.
        """


class OnlineTeacher:
    """A teacher in memory: it reads every micro-batch itself, in its own template and its own numbers.

    Args:
        model: in evaluation mode.
        pad_id: its padding token.
        device: where it computes, by default where it lies.
        is_shared: its weights are shared out among the processes.
    """

    def __init__(self, model: Any, pad_id: int, device: torch.device | None = None, is_shared: bool = False):
        self.decoder, self.head = decoder_and_head(model)
        self.device, self.pad_id, self.is_shared = device or model.device, pad_id, is_shared

    @torch.no_grad()
    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> ExactTeacher:
        """Hidden states of this very moment."""
        prompts = [example["teacher_prompt"] for example in examples]
        if prompts != [example["prompt"] for example in examples]:
            completions = [example["completion"] for example in examples]
            batch = to_device(collate(prompts, completions, self.pad_id), self.device)
        with torch.autocast(device.type, enabled=False):  # mixed precision is the student's
            hidden = read_hidden(self.decoder, batch["input_ids"].to(self.device))
        return ExactTeacher(take_rows(hidden, batch["positions"].to(self.device)), self.head)


class HiddenSignal:
    """Cached hidden states, and the teacher's head.

    Args:
        readers: by the number that an example's `signal` begins with; all of one teacher's head.

    Raises:
        InputError: they have different heads.
    """

    is_shared = False

    def __init__(self, readers: Sequence[SignalReader], device: torch.device, dtype: torch.dtype):
        self.readers = readers
        self.head = readers[0].head(device, dtype)
        for reader in readers[1:]:
            other = reader.head(device, dtype)
            if not torch.equal(other.weight, self.head.weight):
                raise InputError(
                    f"{reader.folder}: expected the head of {readers[0].folder}, found another one: with adapters on "
                    "the head a pooled student needs signal topk"
                )

    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> ExactTeacher:
        """Hidden states from the disk."""
        parts = [self.readers[reader].read(key)["hidden"] for reader, key in (one["signal"] for one in examples)]
        rows = to_device({"rows": torch.cat(parts)}, device)["rows"]
        return ExactTeacher(rows, self.head)


class TopKSignal:
    """Cached log-probabilities of the likeliest tokens.

    Args:
        readers: as of HiddenSignal, each with the temperature among those it keeps.
    """

    is_shared = False

    def __init__(self, readers: Sequence[SignalReader], temperature: float):
        self.readers, self.temperature = readers, temperature

    def __call__(
        self, examples: Sequence[Example], batch: dict[str, torch.Tensor], device: torch.device
    ) -> TopKTeacher:
        """Log-probabilities from the disk, at the temperature."""
        found = []
        for number, key in (one["signal"] for one in examples):
            reader = self.readers[number]
            place = reader.temperatures.index(self.temperature)
            found.append(reader.read(key) | {"place": place})
        parts = {
            "ids": torch.cat([one["ids"] for one in found]),
            "logprobs": torch.cat([one["logprobs"] for one in found]),
            "log_tail": torch.cat([one["log_tail"][:, one["place"]] for one in found]),
        }
        parts = to_device(parts, device)
        return TopKTeacher(parts["ids"], *topk_at(parts["logprobs"], parts["log_tail"], self.temperature))
