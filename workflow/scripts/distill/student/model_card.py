"""The README.md of a student's folder: a Hugging Face model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from distill.common.names import POOLED
from distill.common.quantization_schemes import SCHEMES
from distill.student.divergences import METHODS


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a model card reports about a training run.

    Attributes:
        base_model: the student before distillation.
        teachers: the teachers whose distributions were learned; none for a method without a divergence.
        method: key of METHODS.
        train_records: number of training records.
        val_records: number of validation records.
        options: names and values of the options in use.
        final: number of steps, and the last values of the training log.
        warnings: sentences from the training log.
        earlier: number of trainings that the student went through before this one.
    """

    base_model: str
    teachers: list[str]
    method: str
    train_records: int
    val_records: int
    options: dict[str, Any]
    final: dict[str, float]
    warnings: list[str]
    earlier: int = 0


def render_card(student: str, category: str, facts: TrainingFacts) -> str:
    """Model card with a metadata block.

    Args:
        student: name of the student in the configuration.
        category: category that it was trained on, `all` for several.
        facts: about the training run.
    """
    metadata = {
        "base_model": facts.base_model,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", facts.method, "stillhouse"],
    }
    records = "all categories" if category == POOLED else f"the category `{category}`"
    source = ", ".join(f"`{teacher}`" for teacher in facts.teachers) or "the answers of its teacher"
    settings = "\n".join(f"| `{name}` | `{format_option(value)}` |" for name, value in facts.options.items())
    results = "\n".join(f"| `{name}` | {value:.6g} |" for name, value in facts.final.items())
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False)}---

# {student}: {category}

`{facts.base_model}` distilled by `{facts.method}` from {source}, on {facts.train_records} training and
{facts.val_records} validation records of {records}.
{describe_start(facts.earlier)}{list_warnings(facts.warnings)}
## Training

{describe_loss(facts.method, facts.options.get("cross_tokenizer", False))}
{describe_rounding(facts.options.get("quantization_aware"))}
| setting | value |
| --- | --- |
{settings}

## Training results

The last values of the training log. Losses are in nats per completion token: `ce` is the cross-entropy and `kd` the
divergence, both before their weights.{describe_samples(facts.final)}

| value | |
| --- | ---: |
{results}
"""


def describe_samples(final: Mapping[str, float]) -> str:
    """A sentence about the shares of the answers to validation prompts; empty without them."""
    if "val_truncated" not in final:
        return ""
    return (
        " `val_truncated` is the share of the\nanswers to validation prompts that reach the maximum length without an "
        "end of turn, and\n`val_repetition` the share of their 4-grams that are repetitions."
    )


def describe_start(earlier: int) -> str:
    """A paragraph about the trainings that a student continues; empty if it began with the base model."""
    if not earlier:
        return ""
    trainings = "an earlier training" if earlier == 1 else f"{earlier} earlier trainings"
    return (
        f"\nThis training continued from the student of {trainings}, on other records or with other settings\n"
        "(`continue_from: previous`): the table below describes the last one only.\n"
    )


def describe_rounding(scheme: str | None) -> str:
    """A paragraph about rounded weights; empty without them."""
    if scheme is None:
        return ""
    return (
        "\nThe weights of the decoder's linear layers were rounded in each forward pass "
        f"(`quantization_aware: {scheme}`),\nand the model has the rounded values. {SCHEMES[scheme].description}\n"
    )


def list_warnings(warnings: Sequence[str]) -> str:
    """A section of the card; empty without warnings. Tags in the texts of chat templates are no HTML."""
    if not warnings:
        return ""
    return "\n## Warnings\n\n" + "".join(f"- {escape(warning, quote=False)}\n" for warning in warnings)


def format_option(value: Any) -> str:
    """An option's value as in a configuration."""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def describe_loss(name: str, is_cross_tokenizer: bool = False) -> str:
    """The loss of a method, in Markdown."""
    method = METHODS[name]
    if not method.needs_teacher:
        return f"The loss is the cross-entropy of the teacher's answers ({method.paper})."
    places = (
        "\nTeacher and student have different tokenizers: D is computed where the same text starts in both\n"
        "tokenizations, over tokens that both vocabularies can express."
        if is_cross_tokenizer
        else ""
    )
    return (
        "The loss is `alpha · temperature² · D + (1 − alpha) · cross-entropy`, where D is the divergence of the\n"
        f"distributions p of the teacher and q of the student: `{method.formula}` ({method.paper}).{places}"
    )
