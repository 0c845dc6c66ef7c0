"""The README.md of a student's folder: a Hugging Face model card."""

from typing import Any

import yaml

POOLED = "all"  # the category of a student of all of them


def render_card(student: str, category: str, facts: dict[str, Any]) -> str:
    """Model card with metadata block.

    Args:
        student: its name in the configuration.
        category: what it was trained on.
        facts: `base_model`, `teacher` (None for seqkd), `method`, `train_records`, `val_records`,
            `options` (names and values as configured) and `final` (the last lines of the training log).
    """
    metadata = {
        "base_model": facts["base_model"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", facts["method"], "stillhouse"],
    }
    records = "all categories" if category == POOLED else f"the category `{category}`"
    teacher = f" with `{facts['teacher']}` as teacher" if facts["teacher"] else " on the teacher's answers"
    settings = "\n".join(f"| `{name}` | `{value}` |" for name, value in facts["options"].items())
    results = "\n".join(f"| {name} | {value:.6g} |" for name, value in facts["final"].items())
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False)}---

# {student}: {category}

`{facts["base_model"]}` distilled by `{facts["method"]}`{teacher}, on {facts["train_records"]} training and
{facts["val_records"]} validation records of {records}.

## Training

| setting | value |
| --- | --- |
{settings}

## At the end of training

Per completion token, in nats.

| figure | value |
| --- | --- |
{results}
"""
