"""Load the model to train."""

from typing import Any

import torch

from distill.common.errors import InputError
from distill.models.adapters import untie_adapted_head
from distill.models.load import load_model
from distill.student.options import LoraOptions
from distill.student.student_run import StudentRun


def load_student(run: StudentRun, device: torch.device) -> Any:
    """The student with float32 weights, and a LoRA adapter if configured.

    Raises:
        InputError: the model has no modules that `lora.target` names.
    """
    model = load_model(run.model, device, torch.float32, trainable=True)
    return add_lora(model, run.lora) if run.lora else model


def add_lora(model: Any, lora: LoraOptions) -> Any:
    """A model with an untrained LoRA adapter; see `load_student`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.target in ("all", ["all"]) else lora.target,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"lora.target: {error}") from error
    untie_adapted_head(adapted)
    return adapted
