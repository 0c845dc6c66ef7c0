"""Training a student: a transformers Trainer whose loss is the distillation objective."""

import logging
import math
import time
import types
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs, broadcast_object_list
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer

from distill.common.errors import InputError
from distill.models.batches import is_out_of_memory
from distill.models.completions import collate, to_device
from distill.models.example_table import Example
from distill.student.callbacks import FiniteCheck, LastStep, Preemption, SkippedValidation, StepProgress
from distill.student.checkpoints import find_best
from distill.student.fused_loss import score_completions
from distill.student.loss import Objective, Terms
from distill.student.on_policy import SampleBuffer
from distill.student.step_batches import EpochLoader, StepBatches, pack_step, split_validation
from distill.student.teacher_signal import Signal
from distill.student.training_meter import (
    TrainingMeter,
    describe_weak_divergence,
    format_numbers,
    summarize_validation,
)
from distill.student.validation_samples import Sample, ValidationSamples

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "out of memory with a single training record: set gradient_checkpointing: true, lora, optimizer: "
    "adamw_bnb_8bit, a smaller max_length, or signal: hidden or topk instead of online"
)

NO_GOOD_ANSWERS = (
    "No earlier validation has answers that do not run away, so there are no weights to keep: raise on_policy_start or "
    "set on_policy_runaway: warn"
)


class DistillTrainer(Trainer):
    """Trainer for `alpha · τ² · divergence + (1 − alpha) · cross-entropy` on completion tokens.

    Sums are divided by the completion tokens of the whole optimizer step, over micro-batches and ranks, so the gradient
    does not depend on how the step is split.

    Args:
        batches: the examples of each step.
        pad_id: padding token id of the student.
        signal: the teacher's side of a micro-batch; None for a method without a divergence.
        objective: the objective to minimise.
        sampler: the student's own answers for on-policy steps; None trains on the teacher's answers only.
        row_length: maximum number of tokens in a row that records share; None gives each record a row.
        keep_best: whether to keep the model with the lowest validation loss.
        patience: validations without a lower loss after which training stops; None never stops early.
        warnings: sentences that the log's first line reports, and with it the model card and the report.
        samples: validation prompts that the student answers at each validation; None without any.
        stops_runaway: whether the training stops if these answers run away after on-policy sampling has begun.

    Attributes:
        has_run_away: whether the training has been stopped for that reason. `state.best_model_checkpoint` then has the
            weights to keep.
    """

    # The loss is already divided by the tokens of the step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        batches: StepBatches,
        pad_id: int,
        signal: Signal | None,
        objective: Objective,
        sampler: SampleBuffer | None = None,
        row_length: int | None = None,
        keep_best: bool = False,
        patience: int | None = None,
        warnings: Sequence[str] = (),
        samples: ValidationSamples | None = None,
        stops_runaway: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self.batches, self.pad_id, self.signal, self.sampler = batches, pad_id, signal, sampler
        self.objective: Objective = objective
        self.row_length = row_length
        self.keep_best, self.patience, self.warnings = keep_best, patience, warnings
        self.samples, self.stops_runaway, self.has_run_away = samples, stops_runaway, False
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        base.forward = types.MethodType(score_completions, base)
        # Caching 16-bit copies of all weights until the end of a forward pass costs more than casting them twice.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self.remove_callback(PrinterCallback)
        self.preemption = Preemption()
        for callback in (LastStep(), SkippedValidation(self), self.preemption, StepProgress()):
            self.add_callback(callback)
        self.finite_check = FiniteCheck()
        self.meter = TrainingMeter(self.args.device)
        self.max_records: int | None = None  # per micro-batch, once memory has run out
        self.step_batches: list[list[Example]] = []  # micro-batches of the current step so far

    # ---- Batches ----

    def get_train_dataloader(self) -> EpochLoader:
        """Micro-batches as lists of examples, which `score` turns into tensors."""
        examples: Any = self.train_dataset
        return EpochLoader(examples, batch_sampler=self.batches, collate_fn=list)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of a step, None for those that no rank needs, and its completion tokens over all ranks.

        There are none after the last step: a Trainer that resumes from it in the middle of an epoch would train on.
        """
        self.step_batches = []
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], 1
        self.meter.save()
        batches = list(islice(epoch_iterator, num_batches))
        step = self.state.global_step
        sampler, last_step = self.sampler, self.state.max_steps
        if sampler is not None and 0 < step == sampler.find_first_step(last_step):
            logger.info("step %d/%d: on-policy sampling begins", step + 1, last_step)
        if sampler is not None and sampler.is_on_policy(step, last_step):
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast(AutocastKwargs()):
                batches = [sampler.sample(model, step, last_step, batch) for batch in batches]
        if self.row_length is not None:
            examples = [example for batch in batches for example in batch]
            batches = pack_step(examples, self.row_length, self.args.per_device_train_batch_size)
        tokens = sum(len(example["completion"]) for batch in batches for example in batch)
        most = len(batches)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(torch.tensor([[tokens, most]], device=device)).cpu()
            tokens, most = int(counts[:, 0].sum()), int(counts[:, 1].max())
        # Gradients are exchanged in the last micro-batch of a step, so those that no rank needs come first.
        batches = [*[None] * (num_batches - most), *batches, *([] for _ in range(most - len(batches)))]
        return batches, max(tokens, 1)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted, because micro-batches are lists."""
        return 0

    def split_examples(self, examples: list[Example]) -> list[list[Example]]:
        """A micro-batch in parts that fit in memory; one empty part if it has no examples."""
        size = self.max_records or max(len(examples), 1)
        return [examples[at : at + size] for at in range(0, max(len(examples), 1), size)]

    def score(self, model: Any, examples: Sequence[Example], scale: float | None = None) -> Terms:
        """The terms of a micro-batch; without examples they are zero, still attached to autograd.

        Args:
            model: the student.
            examples: the micro-batch, possibly empty.
            scale: what the loss will be multiplied by, see `distillation_loss`.
        """
        all_examples: Any = self.train_dataset
        # A rank without examples runs the first one with an empty completion, since the others wait for its gradients.
        shown = examples or all_examples[:1]
        completions = [example["completion"] if examples else [] for example in shown]
        batch = collate([example["prompt"] for example in shown], completions, self.pad_id, self.row_length)
        batch = to_device(batch, self.args.device)
        teacher = None
        if self.signal is not None and (examples or self.signal.is_sharded):
            teacher = self.signal(shown, batch, self.args.device)
        objective = self.objective._replace(is_on_policy=any(one.get("is_sampled") for one in examples))
        # Under FSDP, accelerate's autocast follows the dtype of the weights, which stay float32.
        with self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext():
            return Terms(*model(**batch, teacher=teacher if examples else None, objective=objective, scale=scale))

    # ---- The step ----

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of a micro-batch; out of memory, repeat the step so far with half as many records."""
        if inputs is None:
            return torch.zeros((), device=self.args.device)
        if isinstance(model, DistributedDataParallel):
            # Gradients are views of DDP's buckets from the first step on. Set to None, those of the next micro-batches
            # would stand beside the buckets.
            model.zero_grad = partial(Module.zero_grad, model, set_to_none=False)  # type: ignore[method-assign]
        model.train()
        self.meter.start(self.state.global_step)
        self.step_batches.append(inputs)
        waiting = [inputs]
        while True:
            try:
                return [self.add_gradients(model, batch, num_items_in_batch) for batch in waiting][-1]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.halve_records(max(map(len, self.step_batches)), error)
            logger.warning("out of memory: repeating the step with %d records per micro-batch", self.max_records)
            # After the except block: the exception keeps the tensors of the failed step alive.
            self.discard_gradients(model)
            waiting = self.step_batches

    def halve_records(self, largest: int, error: RuntimeError) -> None:
        """Halve the number of records per micro-batch.

        Args:
            largest: records of the largest micro-batch so far.
            error: what ran out of memory.

        Raises:
            InputError: it is one record, or there are other ranks, which would not follow.
        """
        records = min(self.max_records or largest, largest)
        if records <= 1:
            raise InputError(OUT_OF_MEMORY) from error
        if self.args.world_size > 1:
            raise InputError(f"out of memory with {records} records per micro-batch: lower train.batch_size") from error
        self.max_records = records // 2

    def discard_gradients(self, model: Any) -> None:
        """Discard the step's gradients and sums so far."""
        model.zero_grad()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        self.meter.restore()

    def add_gradients(self, model: Any, examples: list[Example], tokens: int) -> torch.Tensor:
        """Run forward and backward of a micro-batch.

        Args:
            examples: the micro-batch, possibly empty.
            tokens: completion tokens of the step over all ranks.

        Returns:
            The micro-batch's share of the step's loss, times the number of ranks.
        """
        total = torch.zeros((), device=self.args.device)
        if not examples and self.args.world_size == 1:
            return total
        # DDP and FSDP average the gradients over ranks; the step needs their sum.
        scale = self.args.world_size / tokens
        # FSDP reduces the gradients of each micro-batch, and the gradient scaler of fp16 multiplies the loss once more.
        is_final = not self.is_fsdp_enabled and self.accelerator.scaler is None
        for part in self.split_examples(examples):
            terms = self.score(model, part, scale if is_final else None)
            loss = terms.loss * scale
            self.accelerator.backward(loss)
            self.meter.add(terms, part)
            total += loss.detach()
        uids = [example["uid"] for example in examples]
        self.finite_check.note("loss", self.state.global_step + 1, uids, total)
        return total

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.accelerator.scaler is None:  # with fp16, the gradient scaler skips steps that overflow
            uids = [example["uid"] for batch in self.step_batches for example in batch]
            self.finite_check.note("gradient", self.state.global_step + 1, uids, norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        self.finite_check.check(folder)
        # The Trainer notes the best checkpoint only if its folder exists, and FSDP creates it late.
        (folder / f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.sampler is not None:
            self.sampler.save(Path(output_dir), self.args.process_index)

    # ---- Validation ----

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "val"
    ) -> dict[str, float]:
        """Log a validation: its losses, and the answers to the validation prompts; empty if pre-empted."""
        started = time.monotonic()
        model: Any = self.model_wrapped
        model.eval()
        metrics = self.measure_validation(model)
        samples = None if metrics is None else self.answer_prompts()
        model.train()
        if metrics is None or samples is None:
            self.skip_validation()
            return {}
        if samples:
            metrics |= self.judge_samples(samples)
        self.log(metrics)
        if samples:
            line: Any = self.state.log_history[-1]
            line["samples"] = samples  # each checkpoint has the log, and with it the samples so far
        self.compare_validations()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.exclude(time.monotonic() - started)
        return metrics

    def measure_validation(self, model: Any) -> dict[str, Any] | None:
        """`val_loss`, `val_ce` and `val_kd` per completion token of the validation split; None if pre-empted."""
        sums = self.sum_validation(model)
        if sums is None:
            return None
        examples: Any = self.eval_dataset
        sums = self.accelerator.reduce(sums, "sum")
        return summarize_validation(sums, examples, self.state.global_step, self.signal is not None)

    def answer_prompts(self) -> list[Sample] | None:
        """The student's answers to the validation prompts, from the first rank; None if pre-empted."""
        if self.samples is None:
            return []
        found: list[list[Sample] | None] = [None]
        if self.is_world_process_zero():
            # No more answers at a time than a micro-batch has records: they take less memory than a training step.
            size = self.max_records or self.args.per_device_eval_batch_size
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast(AutocastKwargs()):
                found = [self.samples.answer(model, size, lambda: self.preemption.is_requested)]
        return broadcast_object_list(found)[0]

    def judge_samples(self, samples: list[Sample]) -> dict[str, Any]:
        """The fields of a validation line about answers, with a warning where they begin to run away.

        Raises:
            InputError: the training has to stop, and no earlier validation has answers that do not run away.
        """
        assert self.samples is not None
        fields = self.samples.measure(samples)
        if not fields["runs_away"]:
            return fields
        warning = self.samples.describe_runaway(self.state.global_step, fields)
        ran_away = [line["runs_away"] for line in self.state.log_history if "runs_away" in line]
        self.has_run_away = self.stops_runaway and self.has_sampled()
        if self.has_run_away:
            if not self.state.best_global_step:
                raise InputError(f"on_policy_runaway: stop: {warning} {NO_GOOD_ANSWERS}")
            warning += f" The training stops and keeps the weights of step {self.state.best_global_step}."
        elif ran_away[-1:] == [True]:
            return fields
        if self.is_world_process_zero():
            logger.warning(warning)
        return fields | {"warnings": [warning]}

    def has_sampled(self) -> bool:
        """Whether a step so far was on-policy."""
        step, last_step = self.state.global_step, self.state.max_steps
        return self.sampler is not None and self.sampler.count_steps(0, step, last_step) > 0

    def sum_validation(self, model: Any) -> torch.Tensor | None:
        """(3,) sums of loss, cross-entropy and divergence over this rank's examples; None if pre-empted."""
        examples: Any = self.eval_dataset
        size, ranks = self.args.per_device_eval_batch_size, self.args.world_size
        batches = split_validation(examples, size, self.args.process_index, ranks)
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        for batch in batches:
            if self.preemption.is_requested_anywhere(self.args):
                return None
            if batch or ranks > 1:
                sums += self.sum_terms(model, batch)
        return sums

    def sum_terms(self, model: Any, examples: list[Example]) -> torch.Tensor:
        """(3,) sums of loss, cross-entropy and divergence over examples, in parts that fit in memory."""
        try:
            parts = self.split_examples(examples)
            return torch.stack([torch.stack(self.score(model, part)[:3]).double() for part in parts]).sum(0)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.halve_records(len(examples), error)
        # After the except block, as in `training_step`.
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        return self.sum_terms(model, examples)

    def skip_validation(self) -> None:
        """Stop for pre-emption with a checkpoint; `SkippedValidation` validates it on resume."""
        logger.warning(
            "received a stop signal: saving the checkpoint of step %d without its validation", self.state.global_step
        )
        self.preemption.has_stopped = True
        self.control.should_save = self.control.should_training_stop = True

    def compare_validations(self) -> None:
        """Save the model to keep so far, and stop after `patience` validations without a lower loss.

        That is the model with the lowest validation loss if `keep_best`. If answers that run away stop the training,
        only models whose answers do not can be kept: the best of them if `keep_best`, or else the last one.
        """
        if self.has_run_away:
            self.control.should_training_stop = True
            self.control.should_save = False  # a run that resumed from these weights would not stop
            return
        history: Any = self.state.log_history
        line = history[-1]
        kept = [one for one in history if not (self.stops_runaway and one.get("runs_away"))]
        if (self.keep_best or self.stops_runaway) and line in kept:
            _, since = find_best(kept)
            if since == 0 or not self.keep_best:
                self.state.best_metric, self.state.best_global_step = line["val_loss"], line["step"]
                self.control.should_save = True
        best, since = find_best(history)
        if self.patience is not None and since >= self.patience:
            logger.info("early stopping: no lower validation loss since step %d", best["step"])
            self.control.should_training_stop = True

    # ---- Log ----

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add terms, speed, memory and warnings to a training line, and stop if it is not finite.

        In fp16 a gradient may overflow: the gradient scaler skips the step and lowers its scale, and `grad_norm` is
        null.

        Raises:
            NotFiniteError: a loss or a gradient since the last line is not finite. Earlier checkpoints are kept.
        """
        if "loss" in logs:
            self.finite_check.check(Path(str(self.args.output_dir)))
            logs |= self.meter.summarize(
                self.state.global_step, lambda sums: self.accelerator.reduce(sums, "sum"), self.signal is not None
            )
            if self.sampler is not None:
                logged = max((int(line["step"]) for line in self.state.log_history if "loss" in line), default=0)
                step, last_step = self.state.global_step, self.state.max_steps
                logs["on_policy_steps"] = self.sampler.count_steps(logged, step, last_step)
            if self.accelerator.scaler is not None and not math.isfinite(logs.get("grad_norm", 0.0)):
                logs["grad_norm"] = None
            if warnings := self.find_warnings(logs):
                logs["warnings"] = warnings
        if "train_runtime" not in logs:
            super().log(logs, start_time)
            logger.info("step %d/%d: %s", self.state.global_step, self.state.max_steps, format_numbers(logs))

    def find_warnings(self, line: dict[str, Any]) -> list[str]:
        """What a training line warns of. The history of a resumed training has what was found before."""
        history = self.state.log_history
        weak = describe_weak_divergence(line, history)
        if self.is_world_process_zero():
            for warning in weak:
                logger.warning(warning)
        is_first = not any("loss" in earlier for earlier in history)
        return [*(self.warnings if is_first else ()), *weak]
