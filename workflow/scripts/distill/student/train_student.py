"""From a category's splits to a student's folder."""

import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import dump_json, replace_directory
from distill.models.adapters import untie_adapted_head, write_adapter
from distill.models.batches import is_out_of_memory
from distill.models.examples import Example
from distill.models.fingerprint import fingerprint_model
from distill.models.hub_names import get_public_name
from distill.models.load import has_bfloat16, load_model, load_tokenizer, select_device
from distill.models.memory import keep_freed_memory
from distill.student.checkpoints import find_stop, last_checkpoint, remove_torn
from distill.student.fsdp import join_processes, let_accelerate_shard, shard_student
from distill.student.loss import Objective
from distill.student.model_card import render_card
from distill.student.on_policy import OnPolicy, PolicyBuffer
from distill.student.run_options import PACE
from distill.student.step_batches import StepBatches
from distill.student.trainer import NO_ROOM, DistillTrainer
from distill.student.trainer_arguments import training_arguments
from distill.student.training_examples import (
    LoadedTeacher,
    Record,
    balance,
    encode_folders,
    load_teacher,
    training_device,
)

logger = logging.getLogger(__name__)

SAVED_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# They say where things are, or how a run goes, not what it ends with.
PLACES = ("data", "out", "checkpoints", "device", "name", "signal_folders")
NOT_IN_RUN_DIGEST = (*PLACES, *PACE)


def train_student(options: dict[str, Any], train: list[list[Record]], val: list[list[Record]]) -> None:
    """Train a student and write its folder: model, tokenizer, training_log.jsonl, README.md.

    Checkpoints lie in a folder of this very run (data, models and settings by content), so that a changed file or
    setting never resumes from what belongs to another; they are removed when the student is written. Those of shards
    and of whole weights lie apart: neither kind is read as the other. A run that SIGTERM or SIGUSR1 has stopped ends
    with exit code 143 (128 + SIGTERM) and its last step as a checkpoint.

    Args:
        options: of train_student.py, by name.
        train, val: records of `read_split`, by folder of data; without `val` nothing is validated.

    Raises:
        InputError: models, records or signal do not fit together.
    """
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("distill").setLevel(logging.WARNING)  # the first process speaks for all
    device = select_device(options["device"])
    options = choose_precision(options, device)
    if device.type == "cpu":
        keep_freed_memory()
    if options["strategy"] == "fsdp":
        join_processes(device)
    tokenizer = load_tokenizer(options["model"])
    teacher = load_teacher(options, tokenizer, device)
    sets = {"train": train, "val": val}
    examples = {name: encode_folders(parts, tokenizer, teacher, options) for name, parts in sets.items()}
    if options["pool_balance"] == "balanced":
        examples["train"] = balance(examples["train"], options["seed"])
    for index, example in enumerate(examples["train"]):
        example["index"] = index
    set_seed(options["seed"])  # before the LoRA weights are drawn
    model = load_student(options, device)
    if options["strategy"] == "fsdp":
        shard_student(model, training_device(device), options["fsdp_offload"])
    runs = Path(options["checkpoints"]) / options["name"] / options["category"]
    folder = runs / (run_digest(options, examples, teacher) + ("_fsdp" if options["strategy"] == "fsdp" else ""))
    trainer = build_trainer(options, folder, model, tokenizer, teacher, examples, device)
    if trainer.is_world_process_zero():
        remove_torn(folder)
    trainer.accelerator.wait_for_everyone()
    checkpoint = last_checkpoint(folder)
    if stopped := find_stop(checkpoint, options["early_stopping_patience"]):
        trainer.args.max_steps = stopped
    logger.info("%d training and %d validation records", len(examples["train"]), len(examples["val"]))
    if checkpoint:
        logger.info("going on from %s", checkpoint)
        if trainer.policy is not None:
            trainer.policy.load(Path(checkpoint))
    trainer.preemption.listen()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RuntimeError as error:
        if is_out_of_memory(error):  # in the optimizer; a step and a validation try with fewer records
            raise InputError(NO_ROOM) from error
        raise
    if trainer.preemption.has_stopped:
        logger.warning("stopped by a signal; the same command goes on from step %d", trainer.state.global_step)
        trainer.accelerator.wait_for_everyone()  # one that ended first would take those down that still write
        sys.exit(128 + signal.SIGTERM)
    if options["best_checkpoint"] and trainer.state.best_model_checkpoint:
        logger.info("taking the model of step %d", trainer.state.best_global_step)
        trainer._load_best_model()
    counts = {f"{name}_records": len(kept) for name, kept in examples.items()}
    write_student(options, trainer, tokenizer, counts)
    if trainer.is_world_process_zero():
        shutil.rmtree(runs, ignore_errors=True)


def choose_precision(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The options with a precision that the device has.

    Raises:
        InputError: fp16 without a GPU.
    """
    if options["precision"] == "fp16" and device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU; set bf16 or fp32")
    if options["precision"] == "bf16" and not has_bfloat16(device):
        logger.warning("this GPU has no bfloat16; training is in fp32")
        return options | {"precision": "fp32"}
    return options


def build_trainer(
    options: dict[str, Any],
    folder: Path,
    model: Any,
    tokenizer: Any,
    teacher: LoadedTeacher | None,
    examples: dict[str, list[Example]],
    device: torch.device,
) -> DistillTrainer:
    """A trainer of the options."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    batches = StepBatches(
        [len(example["prompt"]) + len(example["completion"]) for example in examples["train"]],
        options["batch_size"],
        options["gradient_accumulation_steps"],
        options["seed"],
        rank,
        world,
        options["group_by_length"],
    )
    vocabulary = teacher.vocabulary if teacher else None
    arguments = training_arguments(folder, options, device, batches, len(examples["val"]))
    if options["strategy"] == "fsdp":
        let_accelerate_shard()
    policy = None
    if options["on_policy_fraction"] and teacher is not None:
        names = ("fraction", "steps", "max_new_tokens", "temperature")
        sampling = {name: options[f"on_policy_{name}"] for name in names}
        settings = OnPolicy(
            **sampling, seed=options["seed"], max_length=options["max_length"], vocabulary=teacher.vocabulary
        )
        policy = PolicyBuffer(settings, examples["train"], batches, tokenizer)
    return DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["val"] or None,
        batches=batches,
        pad_id=tokenizer.pad_token_id,
        signal=teacher.signal if teacher else None,
        objective=Objective(options["method"], options["temperature"], options["alpha"], options["beta"], vocabulary),
        policy=policy,
        best=options["best_checkpoint"],
        patience=options["early_stopping_patience"],
    )


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
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"lora.target: {error}") from error
    untie_adapted_head(adapted)
    return adapted


def run_digest(options: dict[str, Any], examples: dict[str, list[Example]], teacher: LoadedTeacher | None) -> str:
    """Digest of everything that decides the trained weights: settings, examples, both models by content."""
    models = [fingerprint_model(options["model"]), *(teacher.fingerprints if teacher else [])]
    settings = {name: value for name, value in options.items() if name not in NOT_IN_RUN_DIGEST}
    # One by one: as a single text they would take many times their memory.
    digests = {name: [digest_of(example) for example in kept] for name, kept in examples.items()}
    return digest_of({"settings": settings, "examples": digests, "models": models})[:16]


def gather_model(options: dict[str, Any], trainer: DistillTrainer) -> Any:
    """The trained model as an ordinary one; put together from its shards by all processes at once, in the first one."""
    if not trainer.is_fsdp_enabled:
        return trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return None
    model = load_student(options, torch.device("cpu"))
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def write_student(options: dict[str, Any], trainer: DistillTrainer, tokenizer: Any, counts: dict[str, int]) -> None:
    """Write the student's folder, whole or not at all; a LoRA student is merged, its adapter kept in `adapter/`."""
    model = gather_model(options, trainer)
    if not trainer.is_world_process_zero():
        return
    history = trainer.state.log_history
    final: dict[str, float] = {}
    for line in history:
        final |= {name: line[name] for name in ("loss", "ce", "kd", "val_loss", "val_ce") if line.get(name) is not None}
    hidden = (*PLACES, "category", "model", "method", "teacher_model")
    facts = {
        "base_model": get_public_name(options["model"]),
        "teacher": get_public_name(options["teacher_model"]) if options["method"] != "seqkd" else None,
        "method": options["method"],
        "options": {name: value for name, value in options.items() if name not in hidden},
        "final": {"steps": trainer.state.global_step, **final},
        **counts,
    }
    with replace_directory(options["out"]) as folder:
        if hasattr(model, "peft_config"):
            write_adapter(model, folder / "adapter")
            model = model.merge_and_unload()
        model.to(SAVED_DTYPES[options["precision"]]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with open(folder / "training_log.jsonl", "w", encoding="utf-8") as file:
            file.writelines(dump_json(line) + "\n" for line in history)
        (folder / "README.md").write_text(render_card(options["name"], options["category"], facts), encoding="utf-8")
    logger.info("wrote %s after %d steps", options["out"], trainer.state.global_step)
