"""Run the stages of an experiment on fake tensors, and count the memory that they take."""

import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bitsandbytes.optim import GlobalOptimManager
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import Trainer, TrainingArguments

from distill.generation import kv_cache
from distill.generation.generate import Draw, size_rows
from distill.generation.rolling_batch import PREFILL_TOKENS, Job, RollingBatch
from distill.generation.sampling import Sampling
from distill.memory_plan.fake_cuda import fake_cuda
from distill.memory_plan.fake_models import make_config, make_model, without_moves
from distill.memory_plan.live_memory import Event, LiveMemory, Point
from distill.memory_plan.stage import Generating, ModelShape, Reading, Training
from distill.models.completions import (
    CHUNK_ROWS,
    collate,
    decoder_and_head,
    project,
    read_hidden,
    score_rows,
    take_rows,
    to_device,
)
from distill.models.load import DTYPES, checkpoint_activations
from distill.models.logits import read_transform
from distill.models.token_alignment import TokenGroups
from distill.models.weight_rounding import WeightRounding, check_torchao
from distill.student.cross_tokenizer import CrossTokenizerSignal
from distill.student.fsdp import list_layers
from distill.student.fused_loss import score_completions
from distill.student.load_student import SAVED_DTYPES, add_lora
from distill.student.loss import Objective, Terms
from distill.student.quantization_aware import compute_rounded
from distill.student.teacher_signal import HiddenSignal, OnlineTeacher, TopKSignal
from distill.teacher.signal_teacher import top_log_probabilities

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = 2  # optimizer steps: the optimizer's states exist from the second on
MICRO_BATCHES = 2  # gradients are accumulated from the second on
Layers = tuple[int | None, ...]  # number of layers of each model of a stage; None for all
ALL: Layers = (None,)
DECODED = 3  # decoding steps before the jump to the longest answers


@dataclass(frozen=True)
class Measured:
    """What a stage took.

    Attributes:
        weights: bytes of weights, with gradients and states left out.
        peaks: largest number of bytes alive, by phase and operation.
        events: allocations and releases, see `CachingAllocator`.
        sharded: bytes of the student's weights, gradients and optimizer states that FSDP shards.
    """

    weights: int
    peaks: dict[Point, int]
    events: list[Event]
    sharded: int


def take_measure(run: Callable[[LiveMemory], int], device: str) -> Measured:
    """Run a stage on fake tensors; `run` returns the bytes that FSDP shards."""
    with fake_cuda(device):
        live = LiveMemory(device)
        sharded = run(live)
    return Measured(live.peaks["loading"], live.tops, live.events, sharded)


def build(shape: ModelShape, device: str, layers: int | None, live: LiveMemory, is_trained: bool = False) -> Any:
    """A model of fake tensors, counted as weights."""
    config = make_config(shape.config, layers)
    dtype = torch.float32 if is_trained else DTYPES[shape.dtype]
    model = make_model(config, dtype, device, shape.quantization, is_trained)
    live.hold(model)
    return model


def count_vocabulary(shape: ModelShape) -> int:
    """Rows of a model's embeddings."""
    return int(make_config(shape.config).get_text_config().vocab_size)


# ---- Training ----


class FakeReader:
    """A reader of cached signals whose tensors are fake; see `SignalReader`."""

    folder = Path()

    def __init__(self, stage: Training, width: int, head: Any, transform: Any):
        self.stage, self.width, self.linear, self.transform = stage, width, head, transform
        self.temperatures = [stage.temperature]

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of a record, on the CPU."""
        make, rows = partial(torch.empty, device="cpu"), self.stage.records[2]
        tensors = {
            "hidden": make(rows, self.width, dtype=torch.bfloat16),
            "ids": torch.zeros(rows, self.stage.top_k, dtype=torch.int32, device="cpu"),
            "logprobs": make(rows, self.stage.top_k, dtype=torch.float16),
            "log_tail": make(rows, 1, dtype=torch.float16),
        }
        if self.stage.tail_samples:
            tensors["tail_ids"] = torch.zeros(rows, 1, self.stage.tail_samples, dtype=torch.int32, device="cpu")
            tensors["tail_entropy"] = make(rows, 1, dtype=torch.float16)
        return tensors

    def head(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The teacher's head."""
        return self.linear


def make_signal(stage: Training, device: str, layers: int | None, live: LiveMemory) -> Any:
    """The teacher's side of a training, with what it keeps in memory; None without a teacher."""
    if stage.teacher is None:
        return None
    if stage.signal == "online":
        model = build(stage.teacher, device, layers, live)
        return OnlineTeacher(model, 0, torch.device(device), row_length=stage.row_length)
    config = make_config(stage.teacher.config)
    text, head = config.get_text_config(), make_head(stage.teacher, device)
    reader: Any = FakeReader(stage, text.hidden_size, head, read_transform(config))
    if stage.signal == "topk":
        return TopKSignal([reader], stage.temperature)
    for one in (head, *(make_head(teacher, device) for teacher in stage.more_heads)):
        live.hold(one)
    return HiddenSignal([reader], torch.device(device), [DTYPES[stage.teacher.dtype]])


def make_head(teacher: ModelShape, device: str) -> torch.nn.Linear:
    """The head of a teacher, frozen."""
    text = make_config(teacher.config).get_text_config()
    with torch.device(device):
        head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False, dtype=DTYPES[teacher.dtype])
    return head.requires_grad_(False)


def make_student(stage: Training, device: str, layers: int | None, live: LiveMemory) -> Any:
    """The student as `DistillTrainer` trains it."""
    model: Any = make_model(make_config(stage.student.config, layers), torch.float32, device, is_trained=True)
    base = model
    if stage.lora:
        with without_moves(), torch.device(device):
            model = add_lora(model, stage.lora)
        base = model.get_base_model()
    if stage.quantization_aware:
        check_torchao(f"train.quantization_aware: {stage.quantization_aware}")
        compute_rounded(model, WeightRounding(stage.quantization_aware, SAVED_DTYPES[stage.precision]))
    base.forward = types.MethodType(score_completions, base)
    if stage.gradient_checkpointing and base.supports_gradient_checkpointing:
        checkpoint_activations(model)
        if stage.lora:
            model.enable_input_require_grads()
    model.train()
    live.hold(model)
    return model


def make_optimizer(name: str, model: Any) -> torch.optim.Optimizer:
    """The optimizer that transformers' Trainer makes, in which embeddings keep states of 32 bits."""
    arguments = TrainingArguments(output_dir=".", optim=name, use_cpu=True, report_to="none")
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if "bnb" not in name:
        return kind(weights, **settings)
    with unset_fake_temporarily():  # it computes its quantization maps
        optimizer: Any = kind(weights, **settings)
    optimizer.name2qmap = {name: torch.empty(len(values)) for name, values in optimizer.name2qmap.items()}
    manager = GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def count_sharded(model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients and optimizer states of a model's layers, which FSDP shards one by one.

    Embeddings, last norm and head are left out: they stay gathered from forward to backward.
    """
    layers = [weight for layer in list_layers(model) for weight in layer.parameters()]
    sizes = [weight.nbytes for weight in layers]
    sizes += [weight.nbytes for weight in layers if weight.requires_grad]
    states = [optimizer.state[weight] for weight in layers if weight in optimizer.state]
    return sum(sizes) + sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def measure_training(stage: Training, device: str, layers: Layers = ALL) -> Measured:
    """Two optimizer steps of two micro-batches, with the longest records.

    Args:
        stage: the training.
        device: `cuda` or `cpu`.
        layers: number of layers of student and teacher.
    """

    def run(live: LiveMemory) -> int:
        model = make_student(stage, device, layers[0], live)
        signal = make_signal(stage, device, layers[-1], live)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = make_optimizer(stage.optimizer, model)
        rows = [count_vocabulary(shape) for shape in (stage.student, stage.teacher) if shape]
        vocabulary = rows[0] if stage.cross_tokenizer else min(rows)
        objective = Objective(stage.method, stage.temperature, stage.alpha, stage.parameters, vocabulary)
        count, prompt_tokens, answer_tokens = stage.records
        prompt, completion = [1] * prompt_tokens, [1] * answer_tokens
        example: Any = {"prompt": prompt, "teacher_prompt": prompt, "completion": completion, "signal": (0, "")}
        if stage.cross_tokenizer:
            groups = TokenGroups([0] * rows[0], [0] * rows[1], size=min(rows))
            signal = CrossTokenizerSignal(signal, groups, stage.temperature)
            spans = [(start, start) for start in range(0, answer_tokens, 2)]
            example |= {"teacher_completion": completion, "spans": spans}
        examples = [example] * count
        place = torch.device(device)
        scale = None if stage.precision == "fp16" or stage.strategy == "fsdp" else 0.5  # as in `DistillTrainer`
        scope: Any = nullcontext()
        if stage.precision in AUTOCAST:
            scope = torch.autocast(device, AUTOCAST[stage.precision], cache_enabled=False)
        with live:
            for _ in range(STEPS):
                for _ in range(MICRO_BATCHES):
                    live.phase = "teacher's forward pass"
                    batch = collate([prompt] * count, [completion] * count, 0, stage.row_length)
                    batch = to_device(batch, place)
                    teacher = signal(examples, batch, place) if signal else None
                    live.phase = "student's forward pass"
                    with scope:
                        loss = Terms(*model(**batch, teacher=teacher, objective=objective, scale=scale)).loss
                    live.phase = "backward pass"
                    (loss * 0.5).backward()
                    del loss, teacher, batch
                live.phase = "optimizer"
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return count_sharded(model, optimizer) if stage.strategy == "fsdp" else 0

    return take_measure(run, device)


# ---- Generation ----


class FixedLimit:
    """A number of rows that neither grows nor shrinks; see `RowLimit`."""

    def __init__(self, rows: int):
        self.size = rows

    def grow(self, rows: int, cache: Any) -> int:
        """The number of rows."""
        return self.size

    def halve(self) -> bool:
        """Refuse."""
        return False


def count_rows(stage: Generating, config: Any, dtype: torch.dtype, free: int | None) -> int:
    """The number of sequences that generation starts with.

    Args:
        stage: the generation.
        config: the model's configuration.
        dtype: dtype of keys and values.
        free: bytes that the device has beside the weights; None for enough.
    """
    room, prefilled = stage.prompt_tokens + stage.answer_tokens, max(stage.prompt_tokens, PREFILL_TOKENS["cuda"])
    devices = [torch.device("cuda")] * config.get_text_config().num_hidden_layers
    sizes = size_rows(config, dtype, room, prefilled, stage.model.quantization == "int8", devices)
    with patch.object(kv_cache, "free_memory", lambda device: free if free is not None else 2**50):
        return kv_cache.RowLimit(stage.batch_size, *sizes).size


def measure_generation(stage: Generating, device: str, rows: int, layers: Layers = ALL) -> Measured:
    """The prefill of `rows` prompts, a few decoding steps, and the last step of the longest answers.

    Args:
        stage: the generation.
        device: `cuda` or `cpu`.
        rows: sequences at a time, see `count_rows`.
        layers: number of layers.
    """

    def run(live: LiveMemory) -> int:
        model = build(stage.model, device, layers[0], live)
        draw = Draw(Sampling(stage.answer_tokens, stage.temperature, stage.top_p), count_vocabulary(stage.model))
        prompts = [[1 + row] * stage.prompt_tokens for row in range(rows)]
        longest = stage.answer_tokens

        def draw_tokens(logits: Tensor, uniforms: Tensor | None) -> Any:
            draw(logits, uniforms)
            return FakeTokens(len(logits))

        def uniforms(index: int) -> np.ndarray:
            return np.full(longest, 0.5)

        job = Job(prompts, [longest] * rows, [0], uniforms if stage.temperature else None, draw_tokens)
        limit: Any = FixedLimit(rows)
        with live:
            batch = RollingBatch(model, job, limit)
            live.phase = "prefill"
            batch.admit()
            live.phase = "decoding"
            for _ in range(DECODED):
                batch.step()
            live.phase = "last step of the longest answers"
            missing = longest - 1 - len(batch.rows[0].tokens)
            if missing > 0:
                for one in batch.rows:
                    one.tokens += [1] * missing
                with torch.inference_mode():
                    batch.cache.positions += missing
            batch.step()
            batch.cache.release()
        return 0

    return take_measure(run, device)


class FakeTokens:
    """Sampled tokens; fake tensors have no values."""

    def __init__(self, rows: int):
        self.rows = rows

    def tolist(self) -> list[int]:
        """Token ids that end no answer."""
        return [1] * self.rows


# ---- Scores and signals ----


def measure_reading(stage: Reading, device: str, rows: int, layers: Layers = ALL) -> Measured:
    """A batch of answers that a model reads: likelihoods, or the signal for training.

    Args:
        stage: what is read, and what for.
        device: `cuda` or `cpu`.
        rows: answers at a time.
        layers: number of layers.
    """

    def run(live: LiveMemory) -> int:
        model = build(stage.model, device, layers[0], live)
        decoder, head = decoder_and_head(model)
        transform = read_transform(model.config)
        prompts: Sequence[list[int]] = [[1] * stage.prompt_tokens] * rows
        with live, torch.inference_mode():
            live.phase = "layers"
            batch = to_device(collate(prompts, [[1] * stage.answer_tokens] * rows, 0), torch.device(device))
            hidden = take_rows(read_hidden(decoder, batch["input_ids"]), batch["positions"])
            live.phase = "head"
            read_rows(stage, hidden, head, transform, batch["targets"])
        return 0

    return take_measure(run, device)


def read_rows(stage: Reading, hidden: Tensor, head: Any, transform: Any, targets: Tensor) -> None:
    """What is computed from the hidden states of completions, (rows, width)."""
    if stage.kind == "likelihood":
        score_rows(hidden, head, targets, transform)
    elif stage.kind == "hidden":
        hidden.bfloat16().cpu()
    else:
        for part in hidden.split(CHUNK_ROWS):
            shape = len(part), len(stage.temperatures), stage.tail_samples
            places = torch.zeros(shape, dtype=torch.float64, device=part.device) if stage.tail_samples else None
            logits = project(part, head, transform).float()
            top_log_probabilities(logits, stage.top_k, stage.temperatures, places)
