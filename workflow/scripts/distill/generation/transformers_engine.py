"""The engine `transformers`: a model in this process, loaded when it is first used."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from distill.common.digest import digest_of
from distill.generation.engine import CompletionScore
from distill.generation.generate import generate_requests
from distill.generation.sampling import Generated, Request, Sampling, name_conversations
from distill.models.batches import AUTO_BATCH_SIZE, in_batches
from distill.models.chat import ChatTemplate, check_conversations
from distill.models.completions import collate, decoder_and_head, read_hidden, score_rows, take_rows, to_device
from distill.models.control_tokens import find_special_tags
from distill.models.fingerprint import fingerprint_model
from distill.models.load import load_chat, load_config, load_model, select_device, select_dtype
from distill.models.logits import read_transform
from distill.models.memory import memory_mb, reserved_mb
from distill.models.options import TEMPLATE_DATE
from distill.models.rope import check_lengths, context_length

logger = logging.getLogger(__name__)

INT8_DEPENDS_ON_BATCH = (
    "quantization int8 (LLM.int8()) treats outlier columns of a whole batch apart, so that the answer, signal or score "
    "of a record can depend on the other records of its batch; with nf4 and unquantized weights it does not"
)


@dataclass(frozen=True)
class ModelSource:
    """A model and how it is loaded; names and values as in config/README.md."""

    model: str
    adapter: str | None = None
    dtype: str = "bfloat16"
    quantization: str = "none"
    device: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    template_date: str = TEMPLATE_DATE

    def load(self) -> Any:
        """Load the model for inference."""
        device = select_device(self.device)
        if self.quantization == "int8":
            logger.warning(INT8_DEPENDS_ON_BATCH)
        return load_model(self.model, device, select_dtype(self.dtype, device), self.quantization, self.adapter)

    def config(self) -> Any:
        """Load the model's configuration.

        Raises:
            InputError: it is missing, or transformers does not support the model.
        """
        return load_config(self.model)

    def load_chat(self) -> ChatTemplate:
        """Load the chat template with the tokenizer."""
        return load_chat(self.model, self.template_arguments, self.template_date)

    def describe(self) -> dict[str, Any]:
        """Return the model and how it is loaded, by name."""
        parts = ("model", "adapter", "dtype", "quantization")
        return {name: getattr(self, name) for name in parts}

    def fingerprint(self, chat: ChatTemplate, sampling: Sampling) -> str:
        """Return a digest of everything except the prompt that determines an answer.

        Versions that left special tags out of the text of answers had no `special_tags` in the digest.
        """
        tags = find_special_tags(chat.tokenizer)
        return digest_of(
            {
                "model": fingerprint_model(self.model, self.adapter),
                "dtype": str(select_dtype(self.dtype, select_device(self.device))),
                "quantization": self.quantization,
                "sampling": sampling.digest_parts(),
                **chat.digest_parts(),
                **({"special_tags": tags} if tags else {}),
            }
        )


class TransformersEngine:
    """Generates answers and scores completions with transformers.

    Args:
        source: the model.
        sampling: sampling settings.
        batch_size: answers generated, or completions scored, at the same time; None adapts to the free memory.
    """

    def __init__(self, source: ModelSource, sampling: Sampling, batch_size: int | None):
        self.source, self.sampling, self.batch_size = source, sampling, batch_size
        self.chat = source.load_chat()

    @cached_property
    def model(self) -> Any:
        """The loaded model."""
        return self.source.load()

    @property
    def depends_on_batch(self) -> bool:
        """Whether the outlier columns of LLM.int8() are found in the whole batch."""
        return self.source.quantization == "int8"

    def fingerprint(self) -> str:
        """Return a digest of weights, adapter, chat template, dtype, quantization and sampling."""
        return self.source.fingerprint(self.chat, self.sampling)

    def score_fingerprint(self) -> str:
        """Return the same digest."""
        return self.fingerprint()

    def describe(self) -> dict[str, Any]:
        """Return model, adapter, dtype, quantization, sampling and settings of the chat template by name."""
        template = {name: part for name, part in self.chat.digest_parts().items() if name != "template"}
        sampling = self.sampling.digest_parts()
        return {"engine": "transformers", **self.source.describe(), **template, "sampling": sampling}

    def check_requests(self, requests: Sequence[Request], where: str) -> None:
        """Check that the chat template renders all conversations; see `Engine.check_requests`."""
        check_conversations(self.chat, name_conversations(requests, where))

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Return prompts that leave no room for a token of answer: uid to a text with length and limit."""
        limit = context_length(self.source.config())
        lengths = {r.uid: len(self.chat.encode_conversation(r.conversation)) for r in requests}
        return {uid: f"{n} tokens, the limit is {limit - 1}" for uid, n in lengths.items() if limit and n >= limit}

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answers as they finish."""
        return generate_requests(self.model, self.chat, requests, self.sampling, self.batch_size)

    @property
    def score_batch_size(self) -> int:
        """Completions per batch in `score_completions`."""
        return self.batch_size or AUTO_BATCH_SIZE[self.model.device.type]

    def score_completions(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[CompletionScore]:
        """Score completions given their prompts, the longest first.

        Raises:
            InputError: see `check_lengths`.
        """
        decoder, head = decoder_and_head(self.model)
        transform = read_transform(self.model.config)
        lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        check_lengths(self.model.config, lengths, self.source.model)
        order = sorted(range(len(prompts)), key=lambda row: -lengths[row])

        @torch.inference_mode()
        def score(rows: list[int]) -> list[tuple[int, CompletionScore]]:
            pad_id = self.chat.tokenizer.pad_token_id
            batch = collate([prompts[row] for row in rows], [completions[row] for row in rows], pad_id)
            batch = to_device(batch, self.model.device)
            hidden = read_hidden(decoder, batch["input_ids"], batch["lengths"])
            hidden = take_rows(hidden, batch["positions"])
            sizes = [len(completions[row]) for row in rows]
            found = score_rows(hidden, head, batch["targets"], transform)
            losses, hits = (one.cpu().split(sizes) for one in found)  # on a GPU, every read of a number would wait
            return [
                (row, CompletionScore(loss.double().sum().item(), len(loss), int(hit.sum())))
                for row, loss, hit in zip(rows, losses, hits, strict=True)
            ]

        found = dict(pair for batch in in_batches(order, score, self.score_batch_size) for pair in batch)
        return [found[row] for row in range(len(prompts))]

    def peak_memory_mb(self) -> int:
        """Return the peak of the tensors on GPUs, or of this process's memory on a CPU, in MiB."""
        return memory_mb(self.model.device)

    def peak_reserved_mb(self) -> int:
        """Return the peak of the memory taken from GPUs, or of this process's memory on a CPU, in MiB."""
        return reserved_mb(self.model.device)
