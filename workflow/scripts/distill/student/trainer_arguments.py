"""The Trainer's arguments from a student's options."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from distill.student.fsdp import trainer_plugin
from distill.student.step_batches import StepBatches

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    folder: Path, options: dict[str, Any], device: torch.device, batches: StepBatches, val_records: int
) -> TrainingArguments:
    """Trainer's arguments from a student's `train` options (names and units in config/README.md)."""
    # Shares of the gradients are added up: whole ones, kept until a step ends, would take the memory that shares save.
    syncing = {"sync_each_batch": True} if options["strategy"] == "fsdp" else {}
    # Not the Trainer's own epoch strategy: it validates after the checkpoint of an epoch's last step is saved, so that
    # a run resumed from there would miss a line of the log.
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options["epochs"],
        per_device_train_batch_size=options["batch_size"],
        per_device_eval_batch_size=options["batch_size"],
        gradient_accumulation_steps=batches.micro_batches,
        learning_rate=options["learning_rate"],
        lr_scheduler_type=SCHEDULERS[options["lr_scheduler"]],
        warmup_steps=options["warmup_ratio"],
        weight_decay=options["weight_decay"],
        max_grad_norm=options["max_grad_norm"],
        optim=options["optimizer"],
        bf16=options["precision"] == "bf16",
        fp16=options["precision"] == "fp16",
        activation_checkpointing=options["gradient_checkpointing"],
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if val_records else "no",
        eval_steps=options["eval_steps"] or batches.steps_per_epoch,
        logging_strategy="steps",
        logging_steps=options["logging_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options["save_steps"],
        save_total_limit=options["save_total_limit"],
        seed=options["seed"],
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        accelerator_config={"gradient_accumulation_kwargs": syncing},
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
    )
    # One model on one GPU, however many there are: the Trainer would else multiply the batch by their number.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if options["strategy"] == "fsdp":
        # Not `fsdp=True`, which a single process is refused.
        arguments.fsdp_plugin_args = trainer_plugin(options["fsdp_offload"])
    return arguments
