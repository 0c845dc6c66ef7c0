"""The loaded teacher: computes the signal of its distribution, and compares a cached signal with the live one."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from distill.common.errors import InputError
from distill.models.batches import AUTO_BATCH_SIZE
from distill.models.completions import CHUNK_ROWS, collate, decoder_and_head, project, read_hidden, take_rows, to_device
from distill.models.example_table import Example
from distill.models.load import load_model, select_device, select_dtype
from distill.models.logits import read_transform
from distill.models.memory import memory_mb, reserved_mb
from distill.models.rope import check_lengths
from distill.teacher.signal_files import topk_at
from distill.teacher.tail_sampling import draw_places, sample_tail

# Divergence in nats per token that 16-bit rounding in a batch of another shape can cause. Single log-probabilities may
# then differ by some tenths; the signal of another record or teacher diverges by whole nats.
TOLERANCE = 0.05
LIKELY = -8.0  # tokens with at least this log-probability are compared one by one
LEAST_LOG = -60000.0  # clamp floor of stored log-probabilities, within float16's range
PROBE_ROWS = 64  # random hidden states that the stored head is tested with
HEAD_TOLERANCE = 0.03  # largest difference of their logits, as a share of the largest; rounding gives below 0.01
LEAST = -100.0  # clamp floor of compared log-probabilities; smaller values are negligible

Options = dict[str, Any]


def top_log_probabilities(
    logits: Tensor, top_k: int, temperatures: Sequence[float], places: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the k most likely tokens of each row and, on request, a sample of the others.

    Args:
        logits: (rows, vocabulary), float32.
        top_k: number of tokens per row.
        temperatures: temperatures that students use.
        places: (rows, temperatures, samples) from `draw_places`; None samples nothing.

    Returns:
        `ids` (rows, k) int32 and `logprobs` (rows, k) float16 at temperature 1, in descending order; `log_tail`
        (rows, temperatures) float16, the log-probability of all other tokens together. With `places` also `tail_ids`
        (rows, temperatures, samples) int32 and `tail_entropy` (rows, temperatures) float16 from `sample_tail`.
    """
    found = logits.log_softmax(-1).topk(min(top_k, logits.shape[-1]))
    others = logits.scatter(1, found.indices, -torch.inf)
    tails = [
        torch.logsumexp(others / temperature, -1) - torch.logsumexp(logits / temperature, -1)
        for temperature in temperatures
    ]
    kept = {
        "ids": found.indices.int(),
        "logprobs": found.values.clamp(min=LEAST_LOG).half(),
        "log_tail": torch.stack(tails, -1).clamp(min=LEAST_LOG).half(),
    }
    if places is None:
        return kept
    pairs = zip(temperatures, places.unbind(1), strict=True)
    ids, entropies = zip(*(sample_tail(others / temperature, at) for temperature, at in pairs), strict=True)
    return kept | {"tail_ids": torch.stack(ids, 1), "tail_entropy": torch.stack(entropies, 1)}


@torch.inference_mode()
def read_head(head: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weight and bias of a linear layer that equals a head.

    A plain linear layer's own tensors are returned. Any other head, such as one with an adapter, is applied to the unit
    vectors.

    Args:
        head: maps (rows, width) hidden states to (rows, vocabulary).
        device: device of the hidden states.
        dtype: data type of the hidden states.

    Returns:
        `weight` (vocabulary, width) and, if the head has one, `bias` (vocabulary,), on the CPU.

    Raises:
        InputError: the linear layer gives other logits than the head.
    """
    if type(head) is torch.nn.Linear:
        with align_module_device(head, "cpu"):  # accelerate may have offloaded it
            return {name: tensor.detach().cpu().clone() for name, tensor in head.named_parameters()}
    width = find_width(head)
    bias = head(torch.zeros(1, width, device=device, dtype=dtype)).float()[0]
    units = torch.eye(width, device=device, dtype=dtype).split(CHUNK_ROWS)
    weight = torch.cat([(head(part).float() - bias).to(dtype).cpu() for part in units]).T.contiguous()
    tensors = {"weight": weight} | ({"bias": bias.to(dtype).cpu()} if bias.any() else {})
    check_head(head, tensors, device, dtype)
    return tensors


def find_width(head: Any) -> int:
    """Return the width of the hidden states that a head takes."""
    return int(next(module for module in head.modules() if hasattr(module, "in_features")).in_features)


def check_head(head: Any, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
    """Compare a linear layer with a head on random hidden states.

    Raises:
        InputError: their outputs differ by more than rounding.
    """
    rows = torch.randn(PROBE_ROWS, tensors["weight"].shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    live = head(rows.to(device)).float().cpu()
    bias = tensors["bias"].float() if "bias" in tensors else None
    kept = torch.nn.functional.linear(rows.float(), tensors["weight"].float(), bias)
    difference, largest = (live - kept).abs().max().item(), live.abs().max().item()
    if not difference <= HEAD_TOLERANCE * largest:  # also for NaN
        raise InputError(
            f"the teacher's head ({type(head).__name__}) cannot be stored as one linear layer: its logits differ by up "
            f"to {difference:.3g}, and are up to {largest:.3g}; use signal topk"
        )


class SignalTeacher:
    """A loaded teacher that computes signals.

    Args:
        options: options of compute_signal.py by name.
        tokenizer: the teacher's tokenizer.
        vocabulary: size of the tokenizer's vocabulary; the model's larger ids are padding.
    """

    def __init__(self, options: Options, tokenizer: Any, vocabulary: int):
        device = select_device(options["device"])
        dtype = select_dtype(options["dtype"], device)
        settings = options["quantization"], options["adapter"]
        self.model = load_model(options["model"], device, dtype, *settings, for_generation=False)
        self.decoder, self.head = decoder_and_head(self.model)
        self.transform = read_transform(self.model.config)
        self.options, self.pad_id, self.vocabulary = options, tokenizer.pad_token_id, vocabulary

    @property
    def batch_size(self) -> int:
        """Records that are computed at a time."""
        return int(self.options["batch_size"] or AUTO_BATCH_SIZE[self.model.device.type])

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Check the numbers of tokens of all records; see `distill.models.rope.check_lengths`."""
        check_lengths(self.model.config, lengths, "the teacher")

    def read_head(self) -> dict[str, Tensor]:
        """Return the head as a linear layer; see `read_head`."""
        return read_head(self.head, self.model.device, self.model.dtype)

    def read_peaks(self) -> dict[str, int]:
        """Return the peak memory of this run by its names in stats.json, in MiB."""
        device = self.model.device
        return {"peak_memory_mb": memory_mb(device), "peak_reserved_mb": reserved_mb(device)}

    def close(self) -> None:
        """Do nothing: the model ends with the process."""

    @torch.inference_mode()
    def compute(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """Return the signal of each example, on the CPU."""
        completions = [example["completion"] for example in examples]
        rows, targets = self.read_rows(examples)
        found = {"hidden": rows.bfloat16()} if self.options["kind"] == "hidden" else self.compute_topk(rows, examples)
        found["completion"] = targets.int()
        sizes = list(map(len, completions))
        split = {name: tensor.cpu().split(sizes) for name, tensor in found.items()}
        # Cloned, because a view would keep the whole batch in memory.
        return [{name: split[name][row].clone() for name in split} for row in range(len(examples))]

    def compute_topk(self, rows: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the most likely tokens of hidden states, (rows, width), of these examples' completions."""
        top_k, temperatures, samples = (self.options[name] for name in ("top_k", "temperatures", "tail_samples"))
        places: Sequence[Tensor | None] = [None] * math.ceil(len(rows) / CHUNK_ROWS)
        if samples:
            drawn = {"places": draw_places(examples, len(temperatures), samples)}
            places = to_device(drawn, rows.device)["places"].split(CHUNK_ROWS)
        parts = [
            top_log_probabilities(self.project(part), top_k, temperatures, at)
            for part, at in zip(rows.split(CHUNK_ROWS), places, strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def read_rows(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Return the hidden states that predict the completions' tokens, (rows, width), and these tokens, (rows,)."""
        prompts, completions = ([example[name] for example in examples] for name in ("prompt", "completion"))
        batch = to_device(collate(prompts, completions, self.pad_id), self.model.device)
        hidden = read_hidden(self.decoder, batch["input_ids"], batch["lengths"])
        return take_rows(hidden, batch["positions"]), batch["targets"]

    def project(self, rows: Tensor) -> Tensor:
        """Return (rows, vocabulary) float32 logits of (rows, width) hidden states."""
        return project(rows, self.head, self.transform).float()[:, : self.vocabulary]

    @torch.inference_mode()
    def compare(self, example: Example, cached: dict[str, Tensor]) -> tuple[float, float]:
        """Compare a cached signal with the live one.

        Args:
            example: a record as the teacher reads it.
            cached: the record's tensors.

        Returns:
            The divergence of the cached distribution from the live one in nats per token (for `topk`, over its buckets
            at its first temperature), and the largest difference of a log-probability among tokens that are likely in
            either distribution.
        """
        rows, _ = self.read_rows([example])
        divergences, largest = [], 0.0
        parts = {name: tensor.to(rows.device).split(CHUNK_ROWS) for name, tensor in cached.items()}
        for at, part in enumerate(rows.split(CHUNK_ROWS)):
            live = self.project(part)
            p, q = self.compare_parts(live, {name: tensors[at] for name, tensors in parts.items()})
            divergences.append((p.exp() * (p - q)).sum(-1))
            likely = torch.maximum(p, q) > LIKELY
            largest = max(largest, (p - q)[likely].abs().max().item())
        return torch.cat(divergences).mean().item(), largest

    def compare_parts(self, live: Tensor, cached: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the same tokens or buckets, live and cached.

        Args:
            live: (rows, vocabulary) logits.
            cached: tensors of the same rows.

        Returns:
            (rows, vocabulary) each for `hidden`, (rows, k + 1) each for `topk`.
        """
        if self.options["kind"] == "hidden":
            return live.log_softmax(-1), self.project(cached["hidden"]).log_softmax(-1)
        temperature = self.options["temperatures"][0]
        live, ids = (live / temperature).log_softmax(-1), cached["ids"].long()
        rest = live.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        top, tail = topk_at(cached["logprobs"], cached["log_tail"][:, 0], temperature)
        both = torch.cat([live.gather(1, ids), rest], -1), torch.cat([top, tail[:, None]], -1)
        p, q = (one.clamp(min=LEAST) for one in both)
        return p, q
