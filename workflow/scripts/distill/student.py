"""From a category's splits to a student's folder."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from distill.chat import shared_vocabulary_size
from distill.digest import digest_of
from distill.errors import InputError
from distill.examples import Collator, encode_examples
from distill.files import dump_json, replace_directory
from distill.model_card import render_card
from distill.model_files import fingerprint_model
from distill.models import has_bfloat16, load_model, load_tokenizer, select_device, select_dtype
from distill.pace import PACE
from distill.training import DistillTrainer, last_checkpoint, training_arguments

log = logging.getLogger(__name__)

SAVED_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# They say where things are, or how a run goes, not what it ends with.
NOT_IN_RUN_DIGEST = ("data", "out", "checkpoints", "device", "name", *PACE)


def train_student(options: dict[str, Any], train: list[dict[str, Any]], val: list[dict[str, Any]]) -> None:
    """Train a student and write its folder: model, tokenizer, training_log.jsonl, README.md.

    Checkpoints lie in a folder of this very run (data, models and settings by content), so that a changed file or
    setting never resumes from what belongs to another; they are removed when the student is written.

    Args:
        options: of train_student.py, by name.
        train, val: records of `read_split`; without `val` nothing is validated.

    Raises:
        InputError: models or records do not fit together, or there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("expected one process: training on several GPUs or nodes is not supported yet")
    device = select_device(options["device"])
    if options["precision"] == "fp16" and device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU; set bf16 or fp32")
    if options["precision"] == "bf16" and not has_bfloat16(device):
        log.warning("this GPU has no bfloat16; training is in fp32")
        options = options | {"precision": "fp32"}
    tokenizer = load_tokenizer(options["model"])
    teacher, teacher_tokenizer, vocabulary = load_teacher(options, tokenizer, device)
    examples = {
        name: encode_examples(records, tokenizer, teacher_tokenizer, options["max_length"], vocabulary)
        for name, records in (("train", train), ("val", val))
    }
    set_seed(options["seed"])  # before the LoRA weights are drawn
    model = load_student(options, device)
    runs = Path(options["checkpoints"]) / options["name"] / options["category"]
    folder = runs / run_digest(options, examples)
    trainer = DistillTrainer(
        model=model,
        args=training_arguments(folder, options, device, len(examples["train"]), len(examples["val"])),
        train_dataset=examples["train"],
        eval_dataset=examples["val"] or None,
        data_collator=Collator(tokenizer.pad_token_id, teacher_tokenizer.pad_token_id if teacher_tokenizer else None),
        teacher=teacher,
        objective={
            "method": options["method"],
            "temperature": options["temperature"],
            "alpha": options["alpha"] if teacher is not None else 0.0,
            "beta": options["beta"],
            "vocabulary": vocabulary,
        },
    )
    checkpoint = last_checkpoint(folder)
    log.info("%d training and %d validation records", len(examples["train"]), len(examples["val"]))
    if checkpoint:
        log.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        counts = {f"{name}_records": len(kept) for name, kept in examples.items()}
        write_student(options, trainer, tokenizer, counts)
        shutil.rmtree(runs, ignore_errors=True)


def load_teacher(options: dict[str, Any], tokenizer: Any, device: torch.device) -> tuple[Any, Any, int | None]:
    """(model, tokenizer, shared vocabulary) of the online teacher; three times None for seqkd."""
    if options["method"] == "seqkd":
        return None, None, None
    teacher_tokenizer = load_tokenizer(options["teacher_model"])
    vocabulary = shared_vocabulary_size(teacher_tokenizer, tokenizer)
    teacher = load_model(
        options["teacher_model"],
        device,
        select_dtype(options["teacher_dtype"], device),
        options["teacher_quantization"],
        options["teacher_adapter"],
        for_generation=False,
    )
    return teacher, teacher_tokenizer, vocabulary


def load_student(options: dict[str, Any], device: torch.device) -> Any:
    """The student with float32 weights, under LoRA where it is asked for; mixed precision is the Trainer's.

    Raises:
        InputError: LoRA names modules that are not there.
    """
    model = load_model(options["model"], device, torch.float32, trainable=True)
    if options["lora_rank"] is None:
        return model
    from peft import LoraConfig, get_peft_model

    target = options["lora_target"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options["lora_rank"],
        lora_alpha=options["lora_alpha"],
        lora_dropout=options["lora_dropout"],
        target_modules="all-linear" if target == ["all"] else target,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"lora.target: {error}") from error


def run_digest(options: dict[str, Any], examples: dict[str, list[dict[str, Any]]]) -> str:
    """Digest of everything that decides the trained weights: settings, examples, both models by content."""
    models = [fingerprint_model(options["model"])]
    if options["method"] != "seqkd":
        models.append(fingerprint_model(options["teacher_model"], options["teacher_adapter"]))
    settings = {name: value for name, value in options.items() if name not in NOT_IN_RUN_DIGEST}
    return digest_of({"settings": settings, "examples": examples, "models": models})[:16]


def write_student(options: dict[str, Any], trainer: DistillTrainer, tokenizer: Any, counts: dict[str, int]) -> None:
    """Write the student's folder, whole or not at all; a LoRA student is merged, its adapter kept in `adapter/`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    history = trainer.state.log_history
    final: dict[str, float] = {}
    for line in history:
        final |= {name: line[name] for name in ("loss", "ce", "kd", "val_loss", "val_ce") if line.get(name) is not None}
    hidden = ("data", "out", "checkpoints", "device", "name", "category", "model", "method", "teacher_model")
    facts = {
        "base_model": options["model"],
        "teacher": options["teacher_model"] if options["method"] != "seqkd" else None,
        "method": options["method"],
        "options": {name: value for name, value in options.items() if name not in hidden},
        "final": {"steps": trainer.state.global_step, **final},
        **counts,
    }
    with replace_directory(options["out"]) as folder:
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder / "adapter")
            model = model.merge_and_unload()
        model.to(SAVED_DTYPES[options["precision"]]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with open(folder / "training_log.jsonl", "w", encoding="utf-8") as file:
            file.writelines(dump_json(line) + "\n" for line in history)
        (folder / "README.md").write_text(render_card(options["name"], options["category"], facts), encoding="utf-8")
    log.info("wrote %s after %d steps", options["out"], trainer.state.global_step)
