"""Train a student on a category's splits and write its folder."""

import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from distill.common.digest import digest_of
from distill.common.disk import check_free, measure_folder
from distill.common.errors import InputError
from distill.common.reporter import Reporter
from distill.models.batches import is_out_of_memory
from distill.models.chat import ChatTemplate
from distill.models.example_table import Example
from distill.models.fingerprint import fingerprint_model
from distill.models.load import has_bfloat16, load_chat, select_device
from distill.models.memory import keep_freed_memory
from distill.models.rope import context_length
from distill.records.split_reader import JoinedRecords, Records
from distill.student.callbacks import TrackerCallback
from distill.student.checkpoints import find_early_stop, find_last_checkpoint, find_others, remove_incomplete
from distill.student.continuation import count_trainings, find_previous, keep_student
from distill.student.cross_tokenizer import describe_spans
from distill.student.divergences import METHODS
from distill.student.fsdp import enable_accelerate_fsdp, init_distributed, shard_student
from distill.student.load_student import SAVED_DTYPES, check_student, load_student
from distill.student.loss import Objective
from distill.student.on_policy import SampleBuffer
from distill.student.options import TrainOptions
from distill.student.step_batches import StepBatches
from distill.student.student_run import StudentRun, list_card_settings, list_result_settings
from distill.student.trainer import OUT_OF_MEMORY, DistillTrainer
from distill.student.trainer_arguments import make_trainer_arguments
from distill.student.training_examples import (
    LoadedTeacher,
    balance,
    check_positions,
    compare_teachers,
    encode_folders,
    load_teacher,
    local_device,
)
from distill.student.validation_samples import ValidationSamples, choose_records
from distill.student.write_student import Examples, describe_training, write_student

logger = logging.getLogger(__name__)


def train_student(run: StudentRun, train: Sequence[Records], val: Sequence[Records]) -> None:
    """Train a student and write its folder: model, tokenizer, training_log.jsonl, README.md.

    Resumes from the last checkpoint of the same run, if there is one: the folder of the checkpoints is named after a
    digest of data, models and settings. When the student is written, all checkpoints of this student and category are
    removed. SIGTERM or SIGUSR1 saves a checkpoint and exits with code 143 (128 + SIGTERM).

    Args:
        run: the options.
        train: training records from `read_split` or a `SplitReader`, by data folder.
        val: validation records, likewise; without records nothing is validated.

    Raises:
        InputError: models, records or signal do not fit together.
    """
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("distill").setLevel(logging.WARNING)
    device = select_device(run.device)
    run = replace(run, train=resolve_precision(run.train, device))
    run = check_student(run)
    if device.type == "cpu":
        keep_freed_memory()
    if run.train.strategy == "fsdp" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        init_distributed(device)
    chat = load_chat(run.model, run.template_arguments, run.template_date)
    tokenizer = chat.tokenizer
    if run.teacher:
        logger.info(
            "loading the %s", "teacher" if run.objective.signal == "online" else "index of the teacher's signal"
        )
    teacher = load_teacher(run, chat, device)
    logger.info("tokenizing %d training and %d validation records", sum(map(len, train)), sum(map(len, val)))
    examples = make_examples(run, {"train": train, "val": val}, chat, teacher)
    check_positions(run, examples.values())
    warnings = compare_teachers(examples["train"], chat, teacher) if teacher and not teacher.alignment else []
    if teacher and teacher.alignment:
        logger.info("%s", describe_spans(examples["train"], teacher.alignment))
    set_seed(run.train.seed)  # before the LoRA weights are initialised
    previous = find_previous(run)
    logger.info("loading the student")
    model = load_student(run, device, previous)
    if run.train.strategy == "fsdp":
        shard_student(model, local_device(device), run.train.fsdp_offload, run.train.precision)
    runs = run.checkpoints / run.name / run.category
    folder = runs / (run_digest(run, examples, teacher, previous) + ("_fsdp" if run.train.strategy == "fsdp" else ""))
    samples = make_samples(run, JoinedRecords(*val), examples["val"], chat, model.config)
    config = describe_training(run, examples) | list_card_settings(run)
    name = f"{run.name}/{run.category}"
    with Reporter(run.trackers, "train_student", name, folder.name, config) as reporter:
        trainer = build_trainer(run, folder, model, tokenizer, teacher, examples, device, warnings, samples, reporter)
        logger.info("training on %d records, %d for validation", len(examples["train"]), len(examples["val"]))
        check_space(run, trainer, runs)
        run_training(trainer, folder)
        keep_best_model(run, trainer)
        write_student(run, trainer, tokenizer, examples, count_trainings(previous))
        if trainer.is_world_process_zero():
            keep_student(run, previous)
            shutil.rmtree(runs, ignore_errors=True)
            reporter.add_card((run.out / "README.md").read_text(encoding="utf-8"))


def keep_best_model(run: StudentRun, trainer: DistillTrainer) -> None:
    """Load the weights to keep, if they are not the last ones."""
    if not (run.train.best_checkpoint or trainer.has_run_away) or not trainer.state.best_model_checkpoint:
        return
    reason = "which has the lowest validation loss" if run.train.best_checkpoint else "before the answers ran away"
    logger.info("keeping the model of step %d, %s", trainer.state.best_global_step, reason)
    trainer._load_best_model()


def check_space(run: StudentRun, trainer: DistillTrainer, checkpoints: Path) -> None:
    """Check that the disks have room for the checkpoints and the student.

    A checkpoint has the trained weights and, with AdamW, two moments of each: in 8 bits, or in the data type of the
    weights; those of Adafactor are negligible. One more is kept than `save_total_limit`, since the oldest is removed
    after the newest is written.

    Args:
        run: the options.
        trainer: has the student.
        checkpoints: folder of all checkpoints of this student and category; those that exist need no more room.

    Raises:
        InputError: a disk is too full; names the folder, the need and the free space.
    """
    model: Any = trainer.model
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    moments = {"adamw_bnb_8bit": lambda weight: 2, "adafactor": lambda weight: 0}
    count_moments = moments.get(run.train.optimizer, lambda weight: 2 * weight.element_size())
    size = sum(weight.numel() * (weight.element_size() + count_moments(weight)) for weight in trained)
    saved = math.ceil(run.train.epochs * trainer.batches.steps_per_epoch / run.train.save_steps)
    kept = size * min(saved + 1, run.train.save_total_limit + 1)
    student = sum(weight.numel() for weight in parameters) * SAVED_DTYPES[run.train.precision].itemsize
    advice = "lower train.save_total_limit"
    check_free({checkpoints: kept - measure_folder(checkpoints), run.out: student}, "checkpoints and student", advice)


def resolve_precision(train: TrainOptions, device: torch.device) -> TrainOptions:
    """The options with a precision that the device supports.

    Raises:
        InputError: fp16 without a GPU.
    """
    if train.precision == "fp16" and device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU; set bf16 or fp32")
    if train.precision == "bf16" and not has_bfloat16(device):
        logger.warning("this GPU has no bfloat16: training in fp32")
        return replace(train, precision="fp32")
    return train


def make_examples(
    run: StudentRun, splits: dict[str, Sequence[Records]], chat: ChatTemplate, teacher: LoadedTeacher | None
) -> Examples:
    """The examples of each split; those of `train` are balanced between folders if configured, and numbered.

    Without validation records the training is not validated.

    Raises:
        InputError: no training records are left, or no validation records and the options need a validation.
    """
    needs_validation = run.train.best_checkpoint or run.train.early_stopping_patience is not None
    settings: dict[str, dict[str, Any]] = {
        "train": {"what": "training records"},
        "val": {"what": "validation records", "may_be_empty": not needs_validation},
    }
    examples = {
        name: encode_folders(folders, chat, teacher, run.train.max_length, cache=run.examples, **settings[name])
        for name, folders in splits.items()
    }
    if any(splits["val"]) and not examples["val"]:
        logger.warning("no validation records are left: the training is not validated")
    if run.pool_balance == "balanced":
        examples["train"] = balance(examples["train"], run.train.seed)
    examples["train"] = examples["train"].number()
    return examples


def run_digest(run: StudentRun, examples: Examples, teacher: LoadedTeacher | None, previous: Path | None = None) -> str:
    """Digest of everything that decides the trained weights: settings, examples, and all models by content."""
    models = [fingerprint_model(run.model), *(teacher.fingerprints if teacher else [])]
    if previous:
        models.append(fingerprint_model(str(previous)))
    # Example by example: as a single JSON text they would take many times their memory.
    digests = {name: [digest_of(example) for example in kept] for name, kept in examples.items()}
    return digest_of({"settings": list_result_settings(run), "examples": digests, "models": models})[:16]


def build_trainer(
    run: StudentRun,
    folder: Path,
    model: Any,
    tokenizer: Any,
    teacher: LoadedTeacher | None,
    examples: Examples,
    device: torch.device,
    warnings: Sequence[str] = (),
    samples: ValidationSamples | None = None,
    reporter: Reporter | None = None,
) -> DistillTrainer:
    """The trainer of a run, with its checkpoints in `folder`, and what the log's first line warns of."""
    batches = StepBatches(
        examples["train"].get_lengths("prompt", "completion"),
        run.train.batch_size,
        run.train.gradient_accumulation_steps,
        run.train.seed,
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
        run.train.group_by_length,
    )
    arguments = make_trainer_arguments(folder, run.train, device, batches, bool(examples["val"]))
    if run.train.strategy == "fsdp":
        enable_accelerate_fsdp()
    return DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["val"] or None,
        callbacks=[TrackerCallback(reporter)] if reporter else None,
        batches=batches,
        pad_id=tokenizer.pad_token_id,
        signal=teacher.signal if teacher else None,
        objective=make_objective(run, teacher),
        sampler=make_sampler(run, teacher, examples["train"], batches, tokenizer),
        row_length=run.train.row_length,
        keep_best=run.train.best_checkpoint,
        patience=run.train.early_stopping_patience,
        warnings=warnings,
        samples=samples,
        stops_runaway=run.stops_runaway,
    )


def make_objective(run: StudentRun, teacher: LoadedTeacher | None) -> Objective:
    """The objective of a run."""
    options = run.objective
    parameters = {name: getattr(options, name) for name in METHODS[options.method].options}
    vocabulary = teacher.vocabulary if teacher else None
    return Objective(options.method, options.temperature, options.alpha, parameters, vocabulary)


def make_sampler(
    run: StudentRun, teacher: LoadedTeacher | None, examples: Sequence[Example], batches: StepBatches, tokenizer: Any
) -> SampleBuffer | None:
    """The student's own answers for on-policy steps; None without such steps."""
    if teacher is None or not run.on_policy.fraction:
        return None
    return SampleBuffer(
        run.on_policy,
        examples,
        batches,
        tokenizer,
        seed=run.train.seed,
        max_length=run.train.max_length,
        vocabulary=teacher.vocabulary,
    )


def make_samples(
    run: StudentRun, records: Records, examples: Sequence[Example], chat: ChatTemplate, config: Any
) -> ValidationSamples | None:
    """The validation prompts that the student answers; None without any.

    Args:
        run: the options.
        records: records of the validation split.
        examples: those that are validated.
        chat: the student's chat template.
        config: the student's configuration.

    Raises:
        InputError: there is no prompt, and answers that run away have to stop the training.
    """
    if not run.train.validation_samples:
        return None
    if run.train.strategy == "fsdp":
        logger.info(
            "no validation prompts are answered: strategy fsdp shards the weights, which all ranks would gather"
        )
        return None
    context = context_length(config)
    uids = {example["uid"] for example in examples if context is None or len(example["prompt"]) < context}
    chosen = choose_records(records, uids, run.train.validation_samples)
    if run.stops_runaway and not chosen:
        raise InputError("on_policy_runaway: stop: expected validation records whose prompts are answered, found none")
    return ValidationSamples(chosen, chat, run.validation_max_new_tokens) if chosen else None


def run_training(trainer: DistillTrainer, folder: Path) -> None:
    """Train to the end, from the last checkpoint in `folder` if there is one.

    Raises:
        InputError: out of memory.
        SystemExit: a signal has stopped the training, after a checkpoint was saved.
    """
    if trainer.is_world_process_zero():
        remove_incomplete(folder)
        for other in find_others(folder):
            logger.warning(
                "%s belongs to other data, models or settings: it is not used, and removed when the student is written",
                other,
            )
    trainer.accelerator.wait_for_everyone()
    checkpoint = find_last_checkpoint(folder)
    if stopped := find_early_stop(checkpoint, trainer.patience):
        trainer.args.max_steps = stopped
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
        if trainer.sampler is not None:
            trainer.sampler.load(checkpoint)
    trainer.preemption.listen()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if is_out_of_memory(error):  # in the optimizer; steps and validations retry with fewer records
            raise InputError(OUT_OF_MEMORY) from error
        raise
    if trainer.preemption.has_stopped:
        logger.warning("stopped by a signal; rerun the same command to resume at step %d", trainer.state.global_step)
        trainer.accelerator.wait_for_everyone()  # the launcher kills all ranks when the first one exits
        sys.exit(128 + signal.SIGTERM)
