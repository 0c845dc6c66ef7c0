"""Trainer callbacks: the last step, a skipped validation, pre-emption, trackers; and the check for finite losses."""

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.common.errors import InputError
from distill.common.progress import Progress
from distill.common.reporter import Reporter

logger = logging.getLogger(__name__)

MAX_UIDS = 20  # records named in a message
NOT_FINITE_ADVICE = "lower train.learning_rate, or set train.precision to bf16 or fp32"


class NotFiniteError(InputError, FloatingPointError):
    """The loss or its gradient is not finite."""


class LastStep(TrainerCallback):
    """Log and validate the last step, whatever `logging_steps` and `eval_steps` are."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Request both at the end of training."""
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        return control


class StepProgress(TrainerCallback):
    """Log how many steps are done and how much time is left, every 30 seconds, with validations and checkpoints.

    On a terminal, the Trainer shows a bar itself.
    """

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock at the first step; those before it come from a checkpoint."""
        if self.progress is None and state.is_world_process_zero and args.disable_tqdm:
            step = state.global_step
            self.progress = Progress(state.max_steps, "training", done=step, unit="steps", source="a checkpoint")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step."""
        if self.progress is not None:
            self.progress.add(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Note loss, speed and memory of a training line, and the loss of a validation, for `make status`."""
        if self.progress is not None and logs:
            names = {"loss": "loss", "val_loss": "val_loss", "tokens_per_second": "tokens_per_second"}
            names["reserved_mb"] = "memory_mb"
            self.progress.note(**{new: logs[old] for old, new in names.items() if logs.get(old) is not None})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the last step."""
        if self.progress is not None:
            self.progress.close()


class TrackerCallback(TrainerCallback):
    """Report each line of the log to trackers, as `train/loss` or `val/loss`.

    The callbacks of `report_to` in transformers are not used: an error in one of them ends the training, and they log a
    resumed training in a new run, or at other steps.

    Args:
        reporter: the training's run in the trackers.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run, at the step of the checkpoint if there is one."""
        self.reporter.start(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report a line."""
        line = logs or {}
        kind = "val" if "val_loss" in line else "train"
        self.reporter.log(
            {f"{kind}/{name.removeprefix('val_')}": value for name, value in line.items()}, state.global_step
        )


class SkippedValidation(TrainerCallback):
    """On resume, run the validation that pre-emption skipped.

    Args:
        trainer: the trainer whose `evaluate` is called.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Validate if a validation was due at the checkpoint's step and its log has none."""
        step = state.global_step
        is_due = args.eval_strategy != "no" and step > 0 and step % int(args.eval_steps or 1) == 0
        if is_due and not any(line["step"] == step and "val_loss" in line for line in state.log_history):
            self.trainer.evaluate()


class Preemption(TrainerCallback):
    """On SIGTERM or SIGUSR1, save a checkpoint at the end of the step and stop training.

    Attributes:
        is_requested: whether this process has received a signal.
        has_stopped: whether the training has been stopped by a signal to any rank.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.has_stopped = False

    def listen(self) -> None:
        """Install the signal handlers; Python allows that in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self.request)

    def request(self, *_: Any) -> None:
        """Handle a signal."""
        self.is_requested = True

    def is_requested_anywhere(self, args: TrainingArguments) -> bool:
        """Whether any rank has received a signal; a collective operation, so all ranks must call it."""
        if args.world_size == 1:
            return self.is_requested
        flag = torch.tensor(float(self.is_requested), device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop, on all ranks after the same step."""
        if self.is_requested_anywhere(args) and state.global_step < state.max_steps:
            logger.warning("received a stop signal: saving the checkpoint of step %d", state.global_step)
            control.should_save = control.should_training_stop = self.has_stopped = True
            control.should_evaluate = False  # time may be short: SkippedValidation runs it on resume
        return control


class FiniteCheck:
    """Checks losses and gradients for NaN and infinity when a step is logged or saved.

    The flags stay on their device until then, so no step waits for the GPU.
    """

    def __init__(self) -> None:
        self.noted: list[tuple[str, int, list[str], torch.Tensor]] = []

    def note(self, name: str, step: int, uids: list[str], value: Any) -> None:
        """Record whether a value is finite.

        Args:
            name: `loss` or `gradient`, for the message.
            step: optimizer step, counted from 1.
            uids: records that the value was computed from.
            value: a scalar, possibly on a GPU.
        """
        self.noted.append((name, step, uids, torch.isfinite(torch.as_tensor(value))))

    def check(self, folder: Path) -> None:
        """Check all values recorded since the last call.

        Args:
            folder: folder of the checkpoints.

        Raises:
            NotFiniteError: a value is not finite; names the step, its records and the last checkpoint.
        """
        noted, self.noted = self.noted, []
        flags = torch.stack([flag.to(noted[0][3].device) for *_, flag in noted]).tolist() if noted else []
        for (name, step, uids, _), is_finite in zip(noted, flags, strict=True):
            if not is_finite:
                raise NotFiniteError(
                    f"step {step}: the {name} is not finite, with the records (uid) {list_uids(uids)}; "
                    f"{describe_last_checkpoint(folder)}; {NOT_FINITE_ADVICE}"
                )


def list_uids(uids: list[str]) -> str:
    """The first MAX_UIDS uids, and the number of the others."""
    more = len(uids) - MAX_UIDS
    return ", ".join(uids[:MAX_UIDS]) + (f" and {more} more" if more > 0 else "")


def describe_last_checkpoint(folder: Path) -> str:
    """The last checkpoint, as part of a message."""
    kept = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[-1]))
    return f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
