"""The stages of an experiment that load models, and what decides how much memory they take. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from distill.student.options import LoraOptions


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model as far as its memory goes.

    Attributes:
        name: how messages call it.
        config: content of its config.json.
        dtype: dtype of weights that are not quantized.
        quantization: `none`, `int8` or `nf4`.
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    dtype: str = "bfloat16"
    quantization: str = "none"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A student's training; attributes as in the configuration, and others:

    Attributes:
        teacher: None without a divergence.
        more_heads: further teachers of a pooled student with signal `hidden`, whose heads are in memory too.
        parameters: the method's own options.
        row_length: tokens of a row that records share; None without packing.
        ranks: processes that train together.
        processes: those of one machine.
    """

    student: ModelShape
    teacher: ModelShape | None
    method: str
    signal: str
    top_k: int
    temperature: float
    alpha: float
    parameters: dict[str, float]
    lora: LoraOptions | None
    optimizer: str
    precision: str
    batch_size: int
    gradient_checkpointing: bool
    prompt_tokens: int
    answer_tokens: int
    tail_samples: int = 0
    row_length: int | None = None
    strategy: str = "ddp"
    fsdp_offload: bool = False
    more_heads: tuple[ModelShape, ...] = ()
    ranks: int = 1
    processes: int = 1
    cross_tokenizer: bool = False
    quantization_aware: str | None = None

    @property
    def models(self) -> tuple[ModelShape, ...]:
        """The models whose layers are in memory."""
        return (self.student, self.teacher) if self.teacher and self.signal == "online" else (self.student,)

    @property
    def records(self) -> tuple[int, int, int]:
        """Records of a micro-batch, and tokens of each one's prompt and answer.

        With packing, rows are full, and may have answers alone: two of them with the shortest prompts.
        """
        if self.row_length is None:
            return self.batch_size, self.prompt_tokens, self.answer_tokens
        return 2 * self.batch_size, 1, max(self.row_length // 2 - 1, 1)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A single model that reads prompts of the same length and generates or reads answers."""

    model: ModelShape
    batch_size: int | None
    prompt_tokens: int
    answer_tokens: int

    @property
    def models(self) -> tuple[ModelShape, ...]:
        """The model."""
        return (self.model,)


@dataclass(frozen=True, kw_only=True)
class Generating(Inference):
    """Answers by continuous batching. `batch_size` is None if it adapts to the memory."""

    temperature: float
    top_p: float


@dataclass(frozen=True, kw_only=True)
class Reading(Inference):
    """Answers that a model reads. `batch_size` is None for the usual number.

    Attributes:
        kind: `likelihood`, `hidden` or `topk`.
        top_k, temperatures, tail_samples: settings of a `topk` signal.
    """

    kind: str
    top_k: int = 64
    temperatures: tuple[float, ...] = (1.0,)
    tail_samples: int = 0


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Models that are loaded at the same time to be written in another form; nothing else takes much memory.

    Attributes:
        models: the models.
        on_host: whether they are loaded into the host's memory even where there is a GPU.
    """

    models: tuple[ModelShape, ...]
    on_host: bool = False


Work = Training | Generating | Reading | Loading


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: jobs of one rule that take the same memory.

    Attributes:
        rule: the rule.
        name: what the table calls it.
        work: what its jobs do in turn; each takes the place of the one before.
        wildcards: wildcards of the rule's jobs, such as the student; empty for all jobs.
    """

    rule: str
    name: str
    work: tuple[Work, ...]
    wildcards: dict[str, str] = field(default_factory=dict)
