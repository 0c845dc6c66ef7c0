"""Changes of a configuration that make a stage fit: single ones from the smallest on, and all of them so far together.

Imports no torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from distill.common.names import TEACHER
from distill.memory_plan.stage import Inference, ModelShape, Training, Work
from distill.student.options import LoraOptions

LORA = LoraOptions(rank=64, alpha=128, dropout=0.05, target="all")


@dataclass(frozen=True)
class Change:
    """A change.

    Attributes:
        text: the setting, as in the configuration.
        apply: returns the stage with the change; the same stage if it changes nothing.
    """

    text: str
    apply: Callable[[Work], Work]


def list_changes(work: Work) -> Iterator[Change]:
    """Yield the changes that lower a stage's memory, the smallest first."""
    changes: tuple[Change, ...] = TRAINING if isinstance(work, Training) else READING
    for change in changes:
        if change.apply(work) != work:
            yield change


def use_checkpointing(work: Work) -> Work:
    """Recompute activations in the backward pass."""
    return replace(work, gradient_checkpointing=True) if isinstance(work, Training) else work


def use_8bit_adam(work: Work) -> Work:
    """Keep Adam's moments in 8 bits."""
    if isinstance(work, Training) and not work.lora and work.optimizer.startswith("adamw_torch"):
        return replace(work, optimizer="adamw_bnb_8bit")
    return work


def use_single_records(work: Work) -> Work:
    """One record per micro-batch."""
    return replace(work, batch_size=1) if isinstance(work, Training) else work


def quantize(model: ModelShape, quantization: str) -> ModelShape:
    """The model with smaller weights; the same one if they are as small already."""
    sizes = ("none", "int8", "nf4")
    return max(model, replace(model, quantization=quantization), key=lambda one: sizes.index(one.quantization))


def quantize_teacher(quantization: str) -> Callable[[Work], Work]:
    """Quantize the teacher of a training, if it is in memory."""

    def apply(work: Work) -> Work:
        if isinstance(work, Training) and work.signal == "online" and work.teacher:
            return replace(work, teacher=quantize(work.teacher, quantization))
        return work

    return apply


def use_topk(work: Work) -> Work:
    """Learn from cached log-probabilities."""
    if isinstance(work, Training) and work.teacher and work.signal != "topk":
        return replace(work, signal="topk")
    return work


def use_lora(work: Work) -> Work:
    """Train an adapter."""
    return replace(work, lora=LORA) if isinstance(work, Training) and not work.lora else work


def quantize_model(quantization: str) -> Callable[[Work], Work]:
    """Quantize the teacher where nothing is trained; students have no such setting."""

    def apply(work: Work) -> Work:
        if isinstance(work, Inference) and work.model.name == TEACHER:
            return replace(work, model=quantize(work.model, quantization))
        return work

    return apply


TRAINING = (
    Change("gradient_checkpointing: true", use_checkpointing),
    Change("optimizer: adamw_bnb_8bit", use_8bit_adam),
    Change("batch_size: 1, with as many more gradient_accumulation_steps", use_single_records),
    Change("teacher_quantization: int8", quantize_teacher("int8")),
    Change("teacher_quantization: nf4", quantize_teacher("nf4")),
    Change("signal: topk", use_topk),
    Change("lora: {rank: 64, alpha: 128, dropout: 0.05, target: all}", use_lora),
)
READING = (
    Change("teacher.quantization: int8", quantize_model("int8")),
    Change("teacher.quantization: nf4", quantize_model("nf4")),
)
