"""Ways to compute a distillation step, measured by kd_step.py on one batch with random models."""

import argparse
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, build, quantize_int8
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from distill.common.files import write_json
from distill.models.chat import ChatTemplate
from distill.models.completions import collate, decoder_and_head, take_rows, to_device
from distill.models.examples import Example
from distill.models.load import checkpoint_activations, load_model
from distill.models.logits import read_transform
from distill.student.fused_loss import distillation_loss, score_completions
from distill.student.loss import ExactTeacher, Objective
from distill.student.teacher_signal import HiddenSignal, OnlineTeacher, Signal, TopKSignal
from distill.teacher.compute_signal import make_shape
from distill.teacher.signal_files import HEAD, INDEX, SignalReader, fingerprint_parts, signal_key
from distill.teacher.signal_shards import ShardWriter, save_whole
from distill.teacher.signal_teacher import SignalTeacher, read_head

OURS = ("online", "hidden", "topk")
OTHERS = ("plain", "trl_gkd", "trl_distillation", "liger")
Step = Callable[[], Tensor]


def build_student(args: argparse.Namespace, device: torch.device) -> Any:
    """Build the student in float32, as the Trainer does; autocast sets the precision."""
    student = build(SHAPES[args.shape][1], 1, torch.float32, device).train()
    if args.gradient_checkpointing:
        checkpoint_activations(student)
    return student


def mixed_precision(args: argparse.Namespace, **settings: bool) -> torch.autocast:
    """Return the autocast of the run's precision."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16", **settings)


def build_teacher(args: argparse.Namespace, device: torch.device, folder: Path) -> Any:
    """Build the teacher in the run's precision; one in nf4 is saved first and loaded by the library."""
    dtype = torch.float32 if args.precision == "fp32" else torch.bfloat16
    config = SHAPES[args.shape][0]
    if args.teacher_quantization != "nf4":
        teacher = build(config, 2, dtype, device).eval().requires_grad_(False)
        if args.teacher_quantization == "int8":
            quantize_int8(teacher)
        return teacher
    saved = folder / "teacher"
    if not saved.exists():
        build(config, 2, dtype, torch.device("cpu")).save_pretrained(saved)
    return load_model(str(saved), device, dtype, args.teacher_quantization, for_generation=False)


def make_examples(args: argparse.Namespace) -> list[Example]:
    """Make examples of random token ids; all prompts have the same length, and all completions."""
    torch.manual_seed(0)
    sizes = args.prompt_tokens, args.completion_tokens
    rows = torch.randint(0, SHAPES[args.shape][2], (args.batch, sum(sizes))).tolist()
    parts = [(row[: sizes[0]], row[sizes[0] :]) for row in rows]
    return [
        {"uid": str(n), "prompt": p, "teacher_prompt": p, "completion": c, "signal": (0, signal_key(p, c))}
        for n, (p, c) in enumerate(parts)
    ]


# ---- Alternatives ----


def padded(examples: list[Example], device: torch.device) -> dict[str, Tensor]:
    """Collate `input_ids`, `attention_mask` and `labels` with -100 on the prompt, like common data collators."""
    tokens = torch.tensor([one["prompt"] + one["completion"] for one in examples], device=device)
    labels = tokens.clone()
    labels[:, : len(examples[0]["prompt"])] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def cut_head(teacher: Any, rows: int) -> None:
    """Drop the padding of a teacher's vocabulary, since TRL expects the student's size.

    Args:
        teacher: a model with an untied head, changed in place.
        rows: size of the student's vocabulary.
    """
    head = teacher.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight[:rows].clone(), requires_grad=False)
    head.out_features = teacher.config.vocab_size = rows


def make_plain(student: Any, teacher: Any, batch: dict[str, Tensor], args: argparse.Namespace) -> Step:
    """Make a simple step: full logits of both models, float32 softmax and a mask."""
    shared = SHAPES[args.shape][2]

    def step() -> Tensor:
        logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        with torch.no_grad():
            of_teacher = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        mask = labels != -100
        q = torch.log_softmax(logits[..., :shared] / args.temperature, dim=-1)
        p = torch.softmax(of_teacher[..., :shared].float() / args.temperature, dim=-1)
        kd = (kl_div(q, p, reduction="none").sum(-1) * mask).sum() / mask.sum()
        ce = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return args.alpha * args.temperature**2 * kd + (1 - args.alpha) * ce

    return step


def make_trl_gkd(student: Any, teacher: Any, batch: dict[str, Tensor], args: argparse.Namespace) -> Step:
    """Make a step with GKDTrainer.compute_loss at beta 0 (forward KL), without temperature and cross-entropy.

    As in the Trainer, autocast covers the forward pass of a model, whose logits are returned in float32.
    """
    from accelerate.utils import convert_outputs_to_fp32
    from trl.experimental.gkd import GKDTrainer

    for model in (student, teacher):
        model.forward = convert_outputs_to_fp32(mixed_precision(args)(model.forward))
    trainer = types.SimpleNamespace(
        teacher_model=teacher, beta=0.0, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss
    )
    tokens = (batch["labels"] != -100).sum()
    return lambda: GKDTrainer.compute_loss(trainer, student, batch, num_items_in_batch=tokens)


def make_trl_distillation(student: Any, teacher: Any, batch: dict[str, Tensor], args: argparse.Namespace) -> Step:
    """Make a step with DistillationTrainer's chunked loss (Triton on a GPU), without τ² and cross-entropy."""
    from accelerate import Accelerator
    from trl import DistillationTrainer

    trainer = types.SimpleNamespace(
        teacher_model=teacher,
        beta=0.0,
        temperature=args.temperature,
        model_kwarg_keys=("logits_to_keep",),
        _is_vlm=False,
        accelerator=Accelerator(cpu=args.device == "cpu"),
        _forward_redirection=lambda wrapper, model, method, *arguments, **named: method(*arguments, **named),
    )
    trainer._get_last_hidden_state = types.MethodType(DistillationTrainer._get_last_hidden_state, trainer)
    prompt = args.prompt_tokens
    inputs = {
        "prompt_ids": batch["input_ids"][:, :prompt],
        "completion_ids": batch["input_ids"][:, prompt:],
        "prompt_mask": batch["attention_mask"][:, :prompt],
        "completion_mask": batch["attention_mask"][:, prompt:],
    }
    tokens = inputs["completion_mask"].sum()
    return lambda: DistillationTrainer._compute_loss(trainer, student, inputs, tokens)[0]


def make_liger(student: Any, teacher: Any, batch: dict[str, Tensor], args: argparse.Namespace) -> Step:
    """Make a step with Liger's chunked linear JSD at beta 0 over all positions; labels mask the prompts."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    shared = SHAPES[args.shape][2]
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - args.alpha,
        weight_soft_loss=args.alpha,
        beta=0.0,
        temperature=args.temperature,
        compiled=args.device == "cuda",
    )
    labels = batch["labels"][:, 1:].flatten()

    def step() -> Tensor:
        masks = {"attention_mask": batch["attention_mask"], "use_cache": False}
        rows = student.model(input_ids=batch["input_ids"], **masks).last_hidden_state[:, :-1].flatten(0, 1)
        with torch.no_grad():
            of_teacher = teacher.model(input_ids=batch["input_ids"], **masks).last_hidden_state[:, :-1].flatten(0, 1)
        heads = student.lm_head.weight[:shared].to(rows.dtype), teacher.lm_head.weight[:shared]
        return loss(rows, heads[0], of_teacher, heads[1], labels)

    return step


# ---- This project ----


def objective_of(args: argparse.Namespace, **changes: Any) -> Objective:
    """Make the objective of the run, with changes."""
    objective = Objective("forward_kl", args.temperature, args.alpha, vocabulary=SHAPES[args.shape][2])
    return objective._replace(**changes)


class Tokenizer:
    """A tokenizer with only what the fingerprint of a signal needs."""

    chat_template = ""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        """Return a vocabulary of the right size with one token, the last."""
        return {"last": self.vocabulary - 1}


def make_signal_teacher(kind: str, teacher: Any, args: argparse.Namespace) -> SignalTeacher:
    """Make the teacher of compute_signal.py from a model in memory, which has no tokenizer."""
    signal_teacher = SignalTeacher.__new__(SignalTeacher)
    signal_teacher.model, signal_teacher.pad_id, signal_teacher.vocabulary = teacher, 0, SHAPES[args.shape][2]
    signal_teacher.decoder, signal_teacher.head = decoder_and_head(teacher)
    signal_teacher.transform = read_transform(teacher.config)
    signal_teacher.options = {"kind": kind, "top_k": args.top_k, "temperatures": [args.temperature], "tail_samples": 0}
    return signal_teacher


def write_signal(kind: str, teacher: Any, examples: list[Example], args: argparse.Namespace, folder: Path) -> None:
    """Compute the batch's signal and write it in the format that train_student.py reads."""
    signal_teacher = make_signal_teacher(kind, teacher, args)
    out = folder / kind
    data = out / "data/benchmark"
    data.mkdir(parents=True)
    width = teacher.config.hidden_size if kind == "hidden" else None
    writer = ShardWriter(data, make_shape(signal_teacher.options, width, SHAPES[args.shape][2]))
    for example, tensors in zip(examples, signal_teacher.compute(examples), strict=True):
        writer.add(example["signal"][1], tensors)
    writer.flush()
    if kind == "hidden":
        save_whole(data / HEAD, read_head(signal_teacher.head, signal_teacher.model.device, signal_teacher.model.dtype))
    parts = fingerprint_parts(
        kind=kind,
        top_k=args.top_k,
        temperatures=[args.temperature],
        weights="benchmark",
        dtype=teacher.dtype,
        quantization=args.teacher_quantization,
        chat=ChatTemplate(Tokenizer(SHAPES[args.shape][2])),
    )
    index = {"fingerprint": "benchmark", "parts": parts, "names": {}, "width": width, "records": writer.places}
    write_json(out / INDEX, index)


def make_ours(
    signal: Signal, student: Any, examples: list[Example], args: argparse.Namespace, device: torch.device
) -> Step:
    """Make the step of DistillTrainer for a micro-batch."""
    student.forward = types.MethodType(score_completions, student)
    objective, tokens = objective_of(args), sum(len(one["completion"]) for one in examples)

    def step() -> Tensor:
        prompts, completions = ([one[name] for one in examples] for name in ("prompt", "completion"))
        batch = to_device(collate(prompts, completions, 0), device)
        teacher = signal(examples, batch, device)
        with mixed_precision(args, cache_enabled=False):
            return student(**batch, teacher=teacher, objective=objective)[0] / tokens

    return step


def make_step(way: str, args: argparse.Namespace, device: torch.device, folder: Path) -> tuple[Any, Step]:
    """Return a way's student and a function that computes its loss in the run's precision, ready for backward."""
    examples = make_examples(args)
    student = build_student(args, device)
    if way in ("hidden", "topk"):
        reader = SignalReader(folder / way)
        dtype = torch.float32 if args.precision == "fp32" else torch.bfloat16
        signal = HiddenSignal([reader], device, [dtype]) if way == "hidden" else TopKSignal([reader], args.temperature)
        return student, make_ours(signal, student, examples, args, device)
    teacher = build_teacher(args, device, folder)
    if way == "online":
        return student, make_ours(OnlineTeacher(teacher, 0), student, examples, args, device)
    if way.startswith("trl"):
        cut_head(teacher, SHAPES[args.shape][1].vocab_size)
    make = {"plain": make_plain, "trl_gkd": make_trl_gkd, "trl_distillation": make_trl_distillation}.get(
        way, make_liger
    )
    step = make(student, teacher, padded(examples, device), args)
    return student, step if way == "trl_gkd" else mixed_precision(args)(step)


def expected_losses(args: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, float]:
    """Compute the expected first loss of each way from the library's loss terms; also write the cached signals."""
    examples = make_examples(args)
    teacher, student = build_teacher(args, device, folder), build_student(args, device)
    for kind in ("hidden", "topk"):
        write_signal(kind, teacher, examples, args, folder)
    return compute_losses(student, teacher, examples, args, device)


@torch.no_grad()
def compute_losses(
    student: Any, teacher: Any, examples: list[Example], args: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Compute the loss of each way with an exact teacher, from the library's loss terms."""
    prompts, completions = ([one[name] for one in examples] for name in ("prompt", "completion"))
    batch = to_device(collate(prompts, completions, 0), device)
    with mixed_precision(args):
        rows = take_rows(student.model(input_ids=batch["input_ids"]).last_hidden_state, batch["positions"])
        of_teacher: ExactTeacher = OnlineTeacher(teacher, 0)(examples, batch, device)
        sums = {
            name: distillation_loss(rows, student.lm_head, batch["targets"], of_teacher, objective)
            for name, objective in (("run", objective_of(args)), ("tau_1", objective_of(args, temperature=1.0)))
        }
    tokens = len(batch["targets"])
    loss, kd, kd_at_1 = (x.item() / tokens for x in (sums["run"].loss, sums["run"].kd, sums["tau_1"].kd))
    return {"plain": loss, "online": loss, "hidden": loss, "trl_gkd": kd_at_1, "trl_distillation": kd}


# ---- Counting operations ----


def block_operations(config: Any, tokens: int, length: int) -> float:
    """Count the multiplications and additions of a forward pass through the decoder with causal attention."""
    head = config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size**2 + 2 * config.hidden_size * head * config.num_key_value_heads
    weights = attention + 3 * config.hidden_size * config.intermediate_size
    mixing = 2 * config.hidden_size * length / 2  # scores and weighted values, half of them masked
    return 2.0 * config.num_hidden_layers * tokens * (weights + mixing)


def count_operations(shape: str, batch: int, prompt: int, completion: int) -> dict[str, float]:
    """Count the operations of a step by way, without checkpointing; a backward pass counts as two forward passes."""
    teacher, student, _ = SHAPES[shape]
    length = prompt + completion
    tokens, rows = batch * length, batch * completion
    blocks = {name: block_operations(one, tokens, length) for name, one in (("t", teacher), ("s", student))}
    heads = {name: 2.0 * one.hidden_size * one.vocab_size for name, one in (("t", teacher), ("s", student))}
    ours = 3 * blocks["s"] + 3 * rows * heads["s"]
    return {
        "plain": 3 * blocks["s"] + 3 * tokens * heads["s"] + blocks["t"] + tokens * heads["t"],
        "online": ours + blocks["t"] + rows * heads["t"],
        "hidden": ours + rows * heads["t"],
        "topk": ours,
    }


def describe_models(args: argparse.Namespace) -> dict[str, Any]:
    """Return the shapes of both models as JSON."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "tie_word_embeddings")
    teacher, student, shared = SHAPES[args.shape]
    found = {
        name: {key: getattr(config, key) for key in names}
        for name, config in (("teacher", teacher), ("student", student))
    }
    return json.loads(json.dumps(found | {"shared_vocabulary": shared}))
