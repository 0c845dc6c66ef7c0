"""The arguments of the Trainer."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from distill.student.fsdp import fsdp_plugin_arguments
from distill.student.options import TrainOptions
from distill.student.step_batches import StepBatches

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class DistillArguments(TrainingArguments):
    """TrainingArguments with a warm-up that is shorter than the training."""

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of the warm-up; the first has learning rate 0, so a training of one step has none."""
        return min(super().get_warmup_steps(num_training_steps), num_training_steps - 1)


def make_trainer_arguments(
    folder: Path, train: TrainOptions, device: torch.device, batches: StepBatches, has_validation: bool
) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        folder: folder of the run's checkpoints.
        train: options of the training.
        device: device of the training.
        batches: the examples of each step.
        has_validation: whether there are validation records.
    """
    arguments = DistillArguments(
        output_dir=str(folder),
        seed=train.seed,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        accelerator_config={"gradient_accumulation_kwargs": accumulation_arguments(train)},
        **optimization_arguments(train, batches),
        **schedule_arguments(train, batches, has_validation),
    )
    # The Trainer would multiply the batch size by the number of visible GPUs; each process uses one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if train.strategy == "fsdp":
        # Set directly, because TrainingArguments rejects `fsdp=True` for a single process.
        arguments.fsdp_plugin_args = fsdp_plugin_arguments(train.fsdp_offload)
    return arguments


def accumulation_arguments(train: TrainOptions) -> dict[str, Any]:
    """How accelerate accumulates gradients.

    With FSDP every micro-batch reduces its gradients to shards: whole gradients, kept until the end of the step, would
    take the memory that sharding saves.
    """
    return {"sync_each_batch": True} if train.strategy == "fsdp" else {}


def optimization_arguments(train: TrainOptions, batches: StepBatches) -> dict[str, Any]:
    """Batches, optimizer, learning rate and precision."""
    return {
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": train.batch_size,
        "gradient_accumulation_steps": batches.micro_batches,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": SCHEDULERS[train.lr_scheduler],
        "warmup_steps": train.warmup_ratio,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optimizer,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "activation_checkpointing": train.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }


def schedule_arguments(train: TrainOptions, batches: StepBatches, has_validation: bool) -> dict[str, Any]:
    """When to log, validate and save.

    Validation after an epoch is scheduled by steps. With the Trainer's epoch strategy it would come after the
    checkpoint of the epoch's last step, and a run that resumes from there would lack that line of the log.
    """
    return {
        "eval_strategy": "steps" if has_validation else "no",
        "eval_steps": train.eval_steps or batches.steps_per_epoch,
        "logging_strategy": "steps",
        "logging_steps": train.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": train.save_steps,
        "save_total_limit": train.save_total_limit,
        "disable_tqdm": not sys.stderr.isatty(),
        "report_to": "none",
    }
