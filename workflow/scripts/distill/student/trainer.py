"""Training a student: a transformers Trainer whose loss is the distillation objective."""

import logging
import math
import time
import types
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer

from distill.common.errors import InputError
from distill.models.batches import is_out_of_memory
from distill.models.completions import collate, read_hidden, take_rows, to_device
from distill.models.examples import Example
from distill.models.memory import memory_mb
from distill.student.callbacks import (
    NOT_FINITE,
    NotFiniteError,
    Preemption,
    ShowLastStep,
    ValidateFirst,
    Watch,
    format_numbers,
    root,
)
from distill.student.checkpoints import find_best
from distill.student.fused_loss import distillation_loss
from distill.student.loss import Objective, Terms
from distill.student.on_policy import PolicyBuffer
from distill.student.step_batches import EpochLoader, StepBatches
from distill.student.teacher_signal import Signal

logger = logging.getLogger(__name__)

NO_ROOM = (
    "memory does not hold a single record of training: choose gradient_checkpointing: true, lora, optimizer "
    "adamw_bnb_8bit, a smaller max_length, or a cached signal instead of online"
)


def score_completions(self: Any, *args: Any, objective: Objective | None = None, **inputs: Any) -> Any:
    """`losses.Terms` of a micro-batch, in a causal model's own forward, so that DDP and FSDP see all gradients.

    Args:
        inputs: `input_ids`, `positions` and `targets` of `collate`, and `teacher` of `distillation_loss`.
        objective: without it the model's forward is what it was, as `generate` expects.
    """
    if objective is None:
        return type(self).forward(self, *args, **inputs)
    hidden = read_hidden(self.get_decoder(), inputs["input_ids"])
    rows = take_rows(hidden, inputs["positions"])
    return tuple(distillation_loss(rows, self.get_output_embeddings(), inputs["targets"], inputs["teacher"], objective))


class DistillTrainer(Trainer):
    """Trainer for `alpha · τ² · divergence + (1 − alpha) · cross-entropy` on completion tokens.

    Sums are divided by the completion tokens of the whole optimizer step, over micro-batches and processes, so the
    gradient does not depend on how it is split.

    Args:
        batches: which examples a step has.
        pad_id: the student's padding token.
        signal: the teacher's side, None for `seqkd`.
        objective: what is minimised.
        policy: on-policy steps, None for none.
        best: the model of the smallest validation loss is kept.
        patience: validations without a smaller loss that end the training, None for none.
    """

    # What compute_loss returns is divided by the tokens of the step already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        batches: StepBatches,
        pad_id: int,
        signal: Signal | None,
        objective: Objective,
        policy: PolicyBuffer | None = None,
        best: bool = False,
        patience: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self.batches, self.pad_id, self.signal, self.policy = batches, pad_id, signal, policy
        self.objective: Objective = objective
        self.best, self.patience = best, patience
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        base.forward = types.MethodType(score_completions, base)
        # A copy of all weights in 16 bits, kept until a forward pass has ended, costs more than casting them twice.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self.remove_callback(PrinterCallback)
        self.preemption = Preemption()
        self.add_callback(ShowLastStep())
        self.add_callback(ValidateFirst(self))
        self.add_callback(self.preemption)
        self.watch = Watch()
        self.rows_at_once: int | None = None  # of a micro-batch, once memory has run out
        self.step_so_far: list[list[Example]] = []
        self._reset_sums()
        self.step_sums = self.sums.clone(), list(self.counts)
        self.since: float | None = None  # what is loaded before the first step is not its time

    def _reset_sums(self) -> None:
        self.sums = torch.zeros(len(Terms._fields), device=self.args.device, dtype=torch.float64)
        self.counts = [0, 0]  # completion tokens, and all that were read

    # ---- Batches ----

    def get_train_dataloader(self) -> EpochLoader:
        """Lists of examples; they become tensors when it is their turn."""
        examples: Any = self.train_dataset
        return EpochLoader(examples, batch_sampler=self.batches, collate_fn=list)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """A step's micro-batches and its completion tokens over all processes."""
        self.step_so_far, self.step_sums = [], (self.sums.clone(), list(self.counts))
        found = list(islice(epoch_iterator, num_batches))
        step = self.state.global_step
        if self.policy is not None and self.policy.is_sampled(step):
            policy, model = self.policy, self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast(AutocastKwargs()):
                found = [policy.take(model, step, self.state.max_steps, batch) if batch else [] for batch in found]
        tokens = sum(len(example["completion"]) for batch in found for example in batch)
        if self.args.world_size > 1:
            tokens = int(self.accelerator.gather(torch.tensor([tokens], device=device)).sum())
        return found, max(tokens, 1)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: micro-batches are lists."""
        return 0

    def score(self, model: Any, examples: Sequence[Example]) -> Terms:
        """The terms of a micro-batch; of one without examples they are 0 and hang on the graph."""
        all_examples: Any = self.train_dataset
        shown = examples or all_examples[:1]
        # A process without a record of its own reads one all the same, since the others wait for its gradients.
        completions = [example["completion"] if examples else [] for example in shown]
        batch = collate([example["prompt"] for example in shown], completions, self.pad_id)
        batch = to_device(batch, self.args.device)
        teacher = None
        if self.signal is not None and (examples or self.signal.is_shared):
            teacher = self.signal(shown, batch, self.args.device)
        objective = self.objective._replace(is_on_policy=any(one.get("is_sampled") for one in examples))
        # Under FSDP accelerate leaves autocast to the weights' own numbers, which stay float32.
        with self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext():
            return Terms(*model(**batch, teacher=teacher if examples else None, objective=objective))

    # ---- The step ----

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of a micro-batch; where memory runs out, of this step's micro-batches again in halves."""
        model.train()
        if self.since is None:
            self.since, self.watch.logged = time.monotonic(), self.state.global_step
        self.step_so_far.append(inputs)
        waiting = [inputs]
        while True:
            try:
                return [self.add_gradients(model, batch, num_items_in_batch) for batch in waiting][-1]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.check_room(error)
            # Not while the error is handled: it holds on to what the failed step had allocated.
            self.make_room(model)
            waiting = self.step_so_far

    def check_room(self, error: RuntimeError) -> None:
        """Halve the records that are trained on at a time.

        Raises:
            InputError: it is one, or the other processes of the step cannot follow.
        """
        self.halve(max(map(len, self.step_so_far)), error)
        logger.warning(
            "out of memory: going on with %d records at a time, and as many more micro-batches", self.rows_at_once
        )

    def halve(self, most: int, error: RuntimeError) -> None:
        """Read half as many records at a time, of `most` that there are.

        Raises:
            InputError: it is one already, or the other processes cannot follow.
        """
        records = min(self.rows_at_once or most, most)
        if records <= 1:
            raise InputError(NO_ROOM) from error
        if self.args.world_size > 1:
            raise InputError(f"out of memory with {records} records at a time: lower train.batch_size") from error
        self.rows_at_once = records // 2

    def make_room(self, model: Any) -> None:
        """Forget the step's gradients and sums so far."""
        model.zero_grad()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        self.sums, self.counts = self.step_sums[0].clone(), list(self.step_sums[1])

    def add_gradients(self, model: Any, examples: list[Example], tokens: int) -> torch.Tensor:
        """Backward of a micro-batch; returns its share of the step's loss."""
        size = self.rows_at_once or max(len(examples), 1)
        total = torch.zeros((), device=self.args.device)
        if not examples and self.args.world_size == 1:
            return total
        for part in [examples[at : at + size] for at in range(0, max(len(examples), 1), size)]:
            terms = self.score(model, part)
            # DDP and FSDP average over processes what is to be a sum.
            loss = terms.loss * (self.args.world_size / tokens)
            self.accelerator.backward(loss)
            self.sums += torch.stack([one.detach() for one in terms]).double()
            completions = sum(len(example["completion"]) for example in part)
            self.counts[0] += completions
            self.counts[1] += completions + sum(len(example["prompt"]) for example in part)
            total += loss.detach()
        self.watch.note_loss(self.state.global_step + 1, [example["uid"] for example in examples], total)
        return total

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.accelerator.scaler is None:  # which skips a step that overflows, and goes on
            uids = [example["uid"] for batch in self.step_so_far for example in batch]
            self.watch.note_gradient(self.state.global_step + 1, uids, norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        self.watch.check(str(folder))
        # Shares are saved late, and a best checkpoint whose folder is not there yet is not noted.
        (folder / f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.policy is not None:
            self.policy.save(Path(output_dir), self.args.process_index)

    # ---- Validation and log ----

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "val"
    ) -> dict[str, float]:
        """`val_loss`, `val_ce` and `val_kd` a completion token, over all tokens of the validation split."""
        started = time.monotonic()
        model: Any = self.model_wrapped
        model.eval()
        examples: Any = self.eval_dataset
        size, processes = self.args.per_device_eval_batch_size, self.args.world_size
        whole = math.ceil(len(examples) / (size * processes))
        lengths = [len(example["prompt"]) + len(example["completion"]) for example in examples]
        batches = StepBatches(lengths, size, whole * processes, 0, self.args.process_index, processes)
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        for indices in batches:
            if self.preemption.is_anyone_told(self.args):
                model.train()
                return self.leave_validation()
            if indices or processes > 1:
                sums += self.add_up(model, [examples[index] for index in indices])
        model.train()
        tokens = sum(len(example["completion"]) for example in examples)
        loss, ce, kd = (self.accelerator.reduce(sums, "sum") / tokens).tolist()
        if not math.isfinite(loss):
            raise NotFiniteError(f"step {self.state.global_step}: the validation loss is not finite; {NOT_FINITE}")
        metrics: dict[str, Any] = {"val_loss": loss, "val_ce": ce}
        metrics |= {"val_kd": kd if self.signal is not None else None, "val_tokens": tokens}
        self.log(metrics)
        self.note_validation()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.since is not None:
            self.since += time.monotonic() - started  # time spent here is not the training's
        return metrics

    def add_up(self, model: Any, examples: list[Example]) -> torch.Tensor:
        """Sums of loss and both terms over examples, in as many parts as memory asks for."""
        try:
            size = self.rows_at_once or max(len(examples), 1)
            parts = [examples[at : at + size] for at in range(0, max(len(examples), 1), size)]
            return torch.stack([torch.stack(self.score(model, part)[:3]).double() for part in parts]).sum(0)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.halve(len(examples), error)
        return self.add_up(model, examples)

    def leave_validation(self) -> dict[str, float]:
        """A signal has come: save what is trained, and validate it when the run goes on."""
        logger.warning("told to stop: saving the checkpoint of step %d, before its validation", self.state.global_step)
        self.preemption.has_stopped = True
        self.control.should_save = self.control.should_training_stop = True
        return {}

    def note_validation(self) -> None:
        """Save what is best so far, and stop where nothing has become better for long enough."""
        best, since = find_best(self.state.log_history)
        if self.best and since == 0:
            self.state.best_metric, self.state.best_global_step = best["val_loss"], best["step"]
            self.control.should_save = True
        if self.patience is not None and since >= self.patience:
            logger.info("stopped early: no better validation loss since step %d", best["step"])
            self.control.should_training_stop = True

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add the terms, the speed and the memory to a training line; refuse to go on with a broken one.

        Raises:
            NotFiniteError: loss or gradient is not finite; checkpoints of earlier steps stay. In fp16 a gradient
                may overflow: the scaler skips the step and tries a smaller scale, and `grad_norm` is null.
        """
        if "loss" in logs:
            self.watch.check(str(self.args.output_dir))
            counts = torch.tensor(self.counts, dtype=torch.float64, device=self.args.device)
            found = self.accelerator.reduce(torch.cat([self.sums, counts]), "sum").tolist()
            _, ce, kd, ce_grad, kd_grad, tokens, read = found
            has_kd = self.signal is not None
            seconds = time.monotonic() - (self.since or 0.0)
            logs |= {"ce": ce / max(tokens, 1), "kd": kd / max(tokens, 1) if has_kd else None}
            steps = max(self.state.global_step - self.watch.logged, 1)
            logs |= {
                "ce_grad": root(ce_grad, tokens, steps),
                "kd_grad": root(kd_grad, tokens, steps) if has_kd else None,
            }
            logs |= {"completion_tokens": int(tokens), "tokens_per_second": round(read / seconds, 1)}
            logs |= {"memory_mb": memory_mb(self.args.device)}
            self.watch.logged = self.state.global_step
            self._reset_sums()
            self.since = time.monotonic()
            if self.accelerator.scaler is not None and not math.isfinite(logs.get("grad_norm", 0.0)):
                logs["grad_norm"] = None
        if "train_runtime" not in logs:
            super().log(logs, start_time)
            logger.info("step %d/%d: %s", self.state.global_step, self.state.max_steps, format_numbers(logs))
