"""Options of the demo's own models."""

from dataclasses import dataclass
from typing import Any

from distill.common.options import COUNT, SEED, option

RATE: dict[str, Any] = {"exclusiveMinimum": 0}


@dataclass(frozen=True)
class TokenizerOptions:
    """The demo's tokenizer, and the seed of all of its models."""

    seed: int = option("Seed of the initial weights and of the record order.", 42, **SEED)
    tokenizer_size: int = option("Size of the vocabulary in tokens.", 1024, minimum=300)


@dataclass(frozen=True)
class TrainingSteps:
    """How long one of the demo's models is trained."""

    steps: int = option("Optimizer steps.", 40, **COUNT)
    batch_size: int = option("Records per optimizer step.", 8, **COUNT)
    learning_rate: float = option("Peak learning rate.", 1.0e-3, **RATE)


@dataclass(frozen=True)
class DemoAdapter(TrainingSteps):
    """The demo's LoRA adapters, one per category."""

    rank: int = option("Rank of the LoRA matrices.", 8, **COUNT)


@dataclass(frozen=True)
class DemoStudent(TrainingSteps):
    """The demo's student before distillation."""

    layers: int = option("Transformer layers.", 2, **COUNT)
    hidden: int = option("Width of the hidden states, a multiple of twice the number of heads.", 96, **COUNT)
    heads: int = option("Attention heads.", 4, **COUNT)
    intermediate: int = option("Width of the feed-forward layers.", 192, **COUNT)
    vocab_size: int = option("Rows of the embedding, at least the size of the tokenizer.", 1056, **COUNT)
    steps: int = option("Optimizer steps of its short pretraining.", 30, **COUNT)
    learning_rate: float = option("Peak learning rate.", 2.0e-3, **RATE)


@dataclass(frozen=True)
class DemoTeacher(DemoStudent):
    """The demo's teacher."""

    layers: int = option("Transformer layers.", 4, **COUNT)
    hidden: int = option("Width of the hidden states, a multiple of twice the number of heads.", 128, **COUNT)
    intermediate: int = option("Width of the feed-forward layers.", 256, **COUNT)
    vocab_size: int = option("Rows of the embedding, at least the size of the tokenizer.", 1088, **COUNT)
    steps: int = option("Optimizer steps per round of training.", 500, **COUNT)
    min_coverage: float = option(
        "Training ends once this share of held-out prompts is answered in the format.",
        0.9,
        minimum=0,
        maximum=1,
    )
    max_rounds: int = option("Rounds of training before giving up.", 3, **COUNT)
