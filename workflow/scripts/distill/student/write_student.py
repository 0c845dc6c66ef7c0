"""Write a trained student: an ordinary Hugging Face model folder with its training log and model card."""

import logging
from pathlib import Path
from typing import Any

import torch

from distill.common.files import dump_json, replace_directory
from distill.models.adapters import merge_adapter, write_adapter
from distill.models.hub_names import get_public_name
from distill.models.save import save_model
from distill.student.load_student import SAVED_DTYPES, load_student
from distill.student.model_card import TrainingFacts, render_card
from distill.student.quantization_aware import round_weights
from distill.student.student_run import StudentRun, list_card_settings
from distill.student.trainer import DistillTrainer
from distill.student.training_examples import TrainingExamples

logger = logging.getLogger(__name__)

Examples = dict[str, TrainingExamples]  # by split


def gather_model(run: StudentRun, trainer: DistillTrainer) -> Any:
    """The trained model, unwrapped; with FSDP all ranks gather its shards, and only the first returns the model."""
    if not trainer.is_fsdp_enabled:
        return trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return None
    model = load_student(run, torch.device("cpu"))
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def write_student(
    run: StudentRun, trainer: DistillTrainer, tokenizer: Any, examples: Examples, earlier: int = 0
) -> None:
    """Write the student's folder atomically; a LoRA adapter is merged, and also kept in `adapter/`.

    After quantization-aware training, the weights are rounded, and `quantization/` has their scales.

    Args:
        run: the options.
        trainer: after training.
        tokenizer: the student's.
        examples: the examples of each split.
        earlier: number of trainings that the student went through before this one.
    """
    model = gather_model(run, trainer)
    if not trainer.is_world_process_zero():
        return
    history = trainer.state.log_history
    with replace_directory(run.out) as folder:
        if hasattr(model, "peft_config"):
            write_adapter(model, folder / "adapter")
            model = merge_adapter(model, "the trained adapter")
        if run.train.quantization_aware:
            round_weights(model, folder)
        save_model(model.to(SAVED_DTYPES[run.train.precision]), tokenizer, folder)
        write_history(folder, history)
        facts = collect_facts(run, history, trainer.state.global_step, examples, earlier)
        (folder / "README.md").write_text(render_card(run.name, run.category, facts), encoding="utf-8")
    logger.info("wrote %s after %d steps", run.out, trainer.state.global_step)


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write training_log.jsonl, and samples.jsonl with the answers to validation prompts."""
    with open(folder / "training_log.jsonl", "w", encoding="utf-8") as file:
        file.writelines(dump_json({key: line[key] for key in line if key != "samples"}) + "\n" for line in history)
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        for line in history:
            file.writelines(dump_json({"step": line["step"]} | one) + "\n" for one in line.get("samples", []))


def collect_facts(
    run: StudentRun, history: list[dict[str, Any]], steps: int, examples: Examples, earlier: int
) -> TrainingFacts:
    """What the model card reports about a run.

    Args:
        run: the options.
        history: lines of the training log.
        steps: optimizer steps.
        examples: the examples of each split.
        earlier: number of trainings that the student went through before this one.
    """
    final: dict[str, float] = {"steps": steps}
    names = ("loss", "ce", "kd", "val_loss", "val_ce", "val_truncated", "val_repetition")
    for line in history:
        final |= {name: line[name] for name in names if line.get(name) is not None}
    if any("on_policy_steps" in line for line in history):
        final["on_policy_steps"] = sum(line.get("on_policy_steps", 0) for line in history)
    return TrainingFacts(
        **describe_training(run, examples),
        options=list_card_settings(run),
        final=final,
        warnings=[warning for line in history for warning in line.get("warnings", [])],
        earlier=earlier,
    )


def describe_training(run: StudentRun, examples: Examples) -> dict[str, Any]:
    """Models, method and numbers of records of a run, as in TrainingFacts."""
    return {
        "base_model": get_public_name(run.model),
        "teachers": [get_public_name(model) for model in run.teacher.list_models()] if run.teacher else [],
        "method": run.objective.method,
        "train_records": len(examples["train"]),
        "val_records": len(examples["val"]),
    }
