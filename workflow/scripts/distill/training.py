"""Training a student: a transformers Trainer whose loss is the distillation objective."""

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.completions import completion_rows, completion_targets
from distill.losses import distillation_terms, mix_terms
from distill.models import decoder_and_head, memory_mb

log = logging.getLogger(__name__)

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


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


class DistillTrainer(Trainer):
    """Trainer for `alpha · τ² · divergence + (1 − alpha) · cross-entropy` on completion tokens.

    Sums are divided by the completion tokens of the whole optimizer step, so the gradient does not depend on how
    it is split into micro-batches.

    Args:
        teacher: model in evaluation mode, None for `seqkd`.
        objective: `method`, `temperature`, `alpha`, `beta` and `vocabulary` (shared ids) as in
            `losses.distillation_terms`.
    """

    # What compute_loss returns is divided by the tokens of the step already.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, teacher: Any | None, objective: dict[str, Any], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # Trainer then counts the labels of all micro-batches of a step
        self._loss_shifts_labels = True
        self.teacher = teacher
        self.objective: dict[str, Any] = objective
        self.remove_callback(PrinterCallback)
        self.add_callback(ShowLastStep())
        self._reset_sums()
        self.since: float | None = None  # what is loaded before the first step is not its time

    def _reset_sums(self) -> None:
        self.sums = torch.zeros(4, device=self.args.device, dtype=torch.float64)

    def _terms(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(cross-entropy sum, divergence sum, completion tokens) of a micro-batch."""
        rows, head = self._rows(self.accelerator.unwrap_model(model), inputs, "")
        teacher_rows, teacher_head = None, None
        if self.teacher is not None:
            # Mixed precision is the student's; the teacher computes in the numbers it is configured with.
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                teacher_rows, teacher_head = self._rows(self.teacher, inputs, "teacher_")
        targets = completion_targets(inputs["labels"])
        ce, kd = distillation_terms(
            rows,
            head,
            targets,
            teacher_rows,
            teacher_head,
            method=self.objective["method"],
            temperature=self.objective["temperature"],
            beta=self.objective["beta"],
            vocabulary=self.objective["vocabulary"],
        )
        return ce, kd, torch.tensor(targets.shape[0], device=rows.device)

    @staticmethod
    def _rows(model: Any, inputs: dict[str, torch.Tensor], prefix: str) -> tuple[torch.Tensor, torch.nn.Module]:
        decoder, head = decoder_and_head(model)
        output = decoder(
            input_ids=inputs[f"{prefix}input_ids"], attention_mask=inputs[f"{prefix}attention_mask"], use_cache=False
        )
        return completion_rows(output.last_hidden_state, inputs[f"{prefix}labels"]), head

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The micro-batch's share of the step's loss: its sums over the step's completion tokens."""
        if self.since is None:
            self.since = time.monotonic()
        with self.accelerator.autocast():
            ce, kd, tokens = self._terms(model, inputs)
        read = inputs["attention_mask"].sum()
        self.sums += torch.stack([ce.detach(), kd.detach(), tokens, read]).double()
        loss = mix_terms(ce, kd, self.objective["alpha"], self.objective["temperature"])
        # A step may hold no completion token at all; its loss is then 0, not 0 / 0.
        return loss / torch.as_tensor(
            num_items_in_batch if num_items_in_batch is not None else 1, device=loss.device
        ).clamp(min=1)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "val"
    ) -> dict[str, float]:
        """`val_loss`, `val_ce` and `val_kd` a completion token, over all tokens of the validation split."""
        started = time.monotonic()
        model: Any = self.model
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        for inputs in self.get_eval_dataloader(eval_dataset):
            with self.accelerator.autocast():
                sums += torch.stack(self._terms(model, self._prepare_inputs(inputs))).double()
        model.train()
        ce, kd, tokens = sums.tolist()
        loss = mix_terms(
            torch.tensor(ce / tokens), torch.tensor(kd / tokens), self.objective["alpha"], self.objective["temperature"]
        )
        metrics: dict[str, Any] = {"val_loss": loss.item(), "val_ce": ce / tokens}
        metrics |= {"val_kd": kd / tokens if self.teacher is not None else None, "val_tokens": int(tokens)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.since is not None:
            self.since += time.monotonic() - started  # time spent here is not the training's
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add the terms, the speed and the memory to a training line; refuse to go on with a broken one.

        Raises:
            FloatingPointError: loss or gradient is not finite; checkpoints of earlier steps stay. In fp16 a gradient
                may overflow: the scaler skips the step and tries a smaller scale, and `grad_norm` is null.
        """
        if "loss" in logs:
            ce, kd, tokens, read = self.sums.tolist()
            seconds = time.monotonic() - (self.since or 0.0)
            logs |= {"ce": ce / max(tokens, 1), "kd": kd / max(tokens, 1) if self.teacher is not None else None}
            logs |= {"completion_tokens": int(tokens), "tokens_per_second": round(read / seconds, 1)}
            logs |= {"memory_mb": memory_mb(self.args.device)}
            self._reset_sums()
            self.since = time.monotonic()
            if self.accelerator.scaler is not None and not math.isfinite(logs.get("grad_norm", 0.0)):
                logs["grad_norm"] = None
            if not all(math.isfinite(logs[name]) for name in ("loss", "grad_norm") if logs.get(name) is not None):
                raise FloatingPointError(f"step {self.state.global_step}: loss or gradient is not finite: {logs}")
        if "train_runtime" not in logs:
            super().log(logs, start_time)
            log.info("step %d/%d: %s", self.state.global_step, self.state.max_steps, format_numbers(logs))


def format_numbers(logs: dict[str, Any]) -> str:
    """`name value` pairs for a line of the log."""
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, (int, float)))


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint, or None. trainer_state.json is written last, so one without it is torn."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            log.warning("%s: not whole, passed over", path)
            continue
        whole.append((state["global_step"], str(path)))
    return max(whole)[1] if whole else None


def training_arguments(
    folder: Path, options: dict[str, Any], device: torch.device, train_records: int, val_records: int
) -> TrainingArguments:
    """Trainer's arguments from a student's `train` options (names and units in config/README.md)."""
    step_records = options["batch_size"] * options["gradient_accumulation_steps"]
    # Not the Trainer's own epoch strategy: it validates after the checkpoint of an epoch's last step is saved, so that
    # a run resumed from there would miss a line of the log.
    epoch_steps = math.ceil(train_records / step_records)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options["epochs"],
        per_device_train_batch_size=options["batch_size"],
        per_device_eval_batch_size=options["batch_size"],
        gradient_accumulation_steps=options["gradient_accumulation_steps"],
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
        eval_steps=options["eval_steps"] or epoch_steps,
        logging_strategy="steps",
        logging_steps=options["logging_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options["save_steps"],
        save_total_limit=options["save_total_limit"],
        seed=options["seed"],
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
    )
    # One model on one GPU, however many there are: the Trainer would else multiply the batch by their number.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
