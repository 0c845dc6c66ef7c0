"""What a training is watched for: its last step, broken numbers, a better validation loss, and being told to stop."""

import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.common.errors import InputError

logger = logging.getLogger(__name__)

SHOWN = 20  # records named in a message
NOT_FINITE = "lower train.learning_rate, or choose precision bf16 or fp32"


class NotFiniteError(InputError, FloatingPointError):
    """Loss or gradient is not finite."""


class ShowLastStep(TrainerCallback):
    """The last step is always logged and validated, wherever `logging_steps` and `eval_steps` fall."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for both when training is about to end."""
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        return control


class ValidateFirst(TrainerCallback):
    """A validation that a stopped run owes to its last step is done before the run goes on.

    Args:
        trainer: has `evaluate`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look into the history of a checkpoint."""
        step = state.global_step
        is_due = args.eval_strategy != "no" and step > 0 and step % int(args.eval_steps or 1) == 0
        if is_due and not any(line["step"] == step and "val_loss" in line for line in state.log_history):
            self.trainer.evaluate()


class Preemption(TrainerCallback):
    """SIGTERM or SIGUSR1 (time is nearly up, a node is wanted) saves a checkpoint at the step's end and stops there."""

    def __init__(self) -> None:
        self.is_told = False
        self.has_stopped = False

    def listen(self) -> None:
        """Take the signals from here on; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self.note)

    def note(self, *_: Any) -> None:
        """Remember it."""
        self.is_told = True

    def is_anyone_told(self, args: TrainingArguments) -> bool:
        """Whether a signal has come to any of the processes, which all ask at the same place."""
        if args.world_size == 1:
            return self.is_told
        told = torch.tensor(float(self.is_told), device=args.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return bool(told)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop, all processes after the same step."""
        if self.is_anyone_told(args) and state.global_step < state.max_steps:
            logger.warning("told to stop: saving the checkpoint of step %d", state.global_step)
            control.should_save = control.should_training_stop = self.has_stopped = True
            control.should_evaluate = False  # there may be no time for it: the run that goes on does it first
        return control


class Watch:
    """Losses and gradients of the steps since the last look, so that no step waits for its numbers.

    Attributes:
        logged: the last step that was logged.
    """

    def __init__(self) -> None:
        self.logged = 0
        self.noted: list[tuple[str, int, list[str], torch.Tensor]] = []

    def note_loss(self, step: int, uids: list[str], loss: torch.Tensor) -> None:
        """Remember a micro-batch's loss, still on its device."""
        self.noted.append(("loss", step, uids, torch.isfinite(loss)))

    def note_gradient(self, step: int, uids: list[str], norm: Any) -> None:
        """Remember the norm of a step's gradient."""
        self.noted.append(("gradient", step, uids, torch.isfinite(torch.as_tensor(norm))))

    def check(self, folder: str) -> None:
        """Look at what was noted.

        Args:
            folder: of the checkpoints.

        Raises:
            NotFiniteError: names the step, its records and the last checkpoint.
        """
        noted, self.noted = self.noted, []
        flags = torch.stack([flag.to(noted[0][3].device) for *_, flag in noted]).tolist() if noted else []
        for (what, step, uids, _), is_finite in zip(noted, flags, strict=True):
            if not is_finite:
                listed = ", ".join(uids[:SHOWN]) + (f" and {len(uids) - SHOWN} more" if len(uids) > SHOWN else "")
                kept = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[-1]))
                last = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
                raise NotFiniteError(
                    f"step {step}: the {what} is not finite, with the records (uid) {listed}; {last}; {NOT_FINITE}"
                )


def root(squares: float, tokens: float, steps: int) -> float:
    """Norm of a term's gradient by the logits of a step, where the loss is a mean over the step's tokens.

    Args:
        squares: sum of squares over all completion tokens of `steps` steps, of sums over tokens.
    """
    return math.sqrt(squares / steps) / max(tokens / steps, 1)


def format_numbers(logs: dict[str, Any]) -> str:
    """`name value` pairs for a line of the log."""
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, (int, float)))
