"""The fields of the training log: loss terms, tokens and speed since the last line, and validation losses."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distill.models.example_table import get_lengths
from distill.models.memory import memory_mb, reserved_mb
from distill.student.callbacks import NOT_FINITE_ADVICE, NotFiniteError
from distill.student.loss import Terms

# Ratio of the terms' gradient norms below which the divergence has negligible influence.
MIN_GRADIENT_RATIO = 0.01


class TrainingMeter:
    """Sums over the steps since the last line of the log.

    The clock starts at the first step, so that loading does not count as training.

    Args:
        device: device of the terms.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.logged_step = 0
        self.started: float | None = None
        self.reset()

    def reset(self) -> None:
        """Set all sums to zero."""
        self.terms = torch.zeros(len(Terms._fields), device=self.device, dtype=torch.float64)
        self.completion_tokens = self.all_tokens = 0

    def start(self, step: int) -> None:
        """Start the clock, unless it is running.

        Args:
            step: optimizer steps done before.
        """
        if self.started is None:
            self.started, self.logged_step = time.monotonic(), step

    def exclude(self, seconds: float) -> None:
        """Leave a time out, such as that of a validation."""
        if self.started is not None:
            self.started += seconds

    def add(self, terms: Terms, examples: Sequence[dict[str, Any]]) -> None:
        """Add a micro-batch."""
        self.terms += torch.stack([one.detach() for one in terms]).double()
        completions = sum(len(example["completion"]) for example in examples)
        self.completion_tokens += completions
        self.all_tokens += completions + sum(len(example["prompt"]) for example in examples)

    def save(self) -> None:
        """Remember the sums, for `restore`."""
        self.saved = self.terms.clone(), self.completion_tokens, self.all_tokens

    def restore(self) -> None:
        """Return to the sums of the last `save`."""
        terms, self.completion_tokens, self.all_tokens = self.saved
        self.terms = terms.clone()

    def summarize(self, step: int, reduce: Callable[[torch.Tensor], torch.Tensor], has_kd: bool) -> dict[str, Any]:
        """The fields of a line, for which all sums start again.

        Args:
            step: the current optimizer step.
            reduce: sums a tensor over all ranks.
            has_kd: whether the objective has a divergence.

        Returns:
            `ce` and `kd` in nats per completion token; `ce_grad` and `kd_grad`, see `gradient_norm`;
            `completion_tokens`; `tokens_per_second` of all tokens, prompts included; `memory_mb` and `reserved_mb`.
        """
        counts = torch.tensor([self.completion_tokens, self.all_tokens], dtype=torch.float64, device=self.device)
        _, ce, kd, ce_grad, kd_grad, tokens, all_tokens = reduce(torch.cat([self.terms, counts])).tolist()
        steps = max(step - self.logged_step, 1)
        seconds = time.monotonic() - (self.started or 0.0)
        fields = {
            "ce": ce / max(tokens, 1),
            "kd": kd / max(tokens, 1) if has_kd else None,
            "ce_grad": gradient_norm(ce_grad, tokens, steps),
            "kd_grad": gradient_norm(kd_grad, tokens, steps) if has_kd else None,
            "completion_tokens": int(tokens),
            "tokens_per_second": round(all_tokens / seconds, 1),
            "memory_mb": memory_mb(self.device),
            "reserved_mb": reserved_mb(self.device),
        }
        self.reset()
        self.started, self.logged_step = time.monotonic(), step
        return fields


def summarize_validation(
    sums: torch.Tensor, examples: Sequence[dict[str, Any]], step: int, has_kd: bool
) -> dict[str, Any]:
    """The fields of a validation line.

    Args:
        sums: (3,) loss, cross-entropy and divergence over all ranks.
        examples: the validation split.
        step: the current optimizer step, for the message.
        has_kd: whether the objective has a divergence.

    Raises:
        NotFiniteError: the loss is not finite.
    """
    tokens = int(get_lengths(examples, "completion").sum())
    loss, ce, kd = (sums / tokens).tolist()
    if not math.isfinite(loss):
        raise NotFiniteError(f"step {step}: the validation loss is not finite; {NOT_FINITE_ADVICE}")
    return {"val_loss": loss, "val_ce": ce, "val_kd": kd if has_kd else None, "val_tokens": tokens}


def gradient_norm(squares: float, tokens: float, steps: int) -> float:
    """Norm of a term's gradient with respect to the logits of a step, root mean square over several steps.

    Args:
        squares: squared norms of the gradients of sums over tokens, summed over `steps` steps.
        tokens: completion tokens of these steps; the loss of a step is a mean over its tokens.
    """
    return math.sqrt(squares / steps) / max(tokens / steps, 1)


def has_both_gradients(line: dict[str, Any]) -> bool:
    """Whether a line of the log is about steps with both terms; on-policy steps have no cross-entropy term."""
    return bool(line.get("ce_grad")) and line.get("kd_grad") is not None


def describe_weak_divergence(line: dict[str, Any], history: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence if the gradient of the divergence is below MIN_GRADIENT_RATIO of cross-entropy's.

    Only the first line with both terms counts: later the ratio may fall because the student comes close to the teacher.

    Args:
        line: the current line of the log.
        history: the earlier lines.
    """
    if not has_both_gradients(line) or any(map(has_both_gradients, history)):
        return []
    ce, kd = line["ce_grad"], line["kd_grad"]
    if kd >= MIN_GRADIENT_RATIO * ce:
        return []
    return [
        "At the start of training, the gradient norm of the weighted distillation term with respect to the logits is "
        f"{kd:.2g}, {kd / ce:.2g} times the cross-entropy term's {ce:.2g}: the teacher's distribution has negligible "
        "influence. Raise alpha or temperature, or choose a method with another divergence."
    ]


def format_numbers(fields: dict[str, Any]) -> str:
    """`name value` pairs, for a line of the console log."""
    return ", ".join(f"{name} {value:.4g}" for name, value in fields.items() if isinstance(value, (int, float)))
