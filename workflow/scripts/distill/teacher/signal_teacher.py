"""The teacher in memory: what is kept of its distribution, and how a kept signal compares with the live one."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from distill.models.completions import CHUNK_ROWS, collate, decoder_and_head, project, read_hidden, take_rows, to_device
from distill.models.examples import Example
from distill.models.load import load_model, select_device, select_dtype
from distill.teacher.signal_files import NAMES, topk_at

# Divergence a token (nats) that is rounding: numbers of 16 bits, in a batch of another shape. Single log-probabilities
# may differ by some tenths then; the signal of another record or teacher diverges by whole nats.
TOLERANCE = 0.05
LIKELY = -8.0  # log-probability from which on single tokens are compared
LEAST_LOG = -60000.0  # float16 holds it
LEAST = -100.0  # of log-probabilities that are compared: of less, no sum of probabilities knows

Options = dict[str, Any]


def top_log_probabilities(logits: Tensor, top_k: int, temperatures: Sequence[float]) -> dict[str, Tensor]:
    """The likeliest tokens of each row.

    Args:
        logits: (rows, vocabulary), float32.

    Returns:
        `ids` (rows, k) int32 and `logprobs` (rows, k) float16 at temperature 1, in descending order; `log_tail`
        (rows, temperatures) float16, the logarithm of the probability of all others.
    """
    found = logits.log_softmax(-1).topk(min(top_k, logits.shape[-1]))
    others = logits.scatter(1, found.indices, -torch.inf)
    tails = [
        torch.logsumexp(others / temperature, -1) - torch.logsumexp(logits / temperature, -1)
        for temperature in temperatures
    ]
    return {
        "ids": found.indices.int(),
        "logprobs": found.values.clamp(min=LEAST_LOG).half(),
        "log_tail": torch.stack(tails, -1).clamp(min=LEAST_LOG).half(),
    }


class SignalTeacher:
    """A teacher in memory, and what is kept of its distribution."""

    def __init__(self, options: Options, tokenizer: Any, vocabulary: int):
        device = select_device(options["device"])
        dtype = select_dtype(options["dtype"], device)
        settings = options["quantization"], options["adapter"]
        self.model = load_model(options["model"], device, dtype, *settings, for_generation=False, is_alone=True)
        self.decoder, self.head = decoder_and_head(self.model)
        self.options, self.pad_id, self.vocabulary = options, tokenizer.pad_token_id, vocabulary

    @torch.inference_mode()
    def compute(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The signal of each example, on the CPU."""
        completions = [example["completion"] for example in examples]
        rows, targets = self.read_rows(examples)
        if self.options["kind"] == "hidden":
            found = {"hidden": rows.bfloat16()}
        else:
            parts = [
                top_log_probabilities(self.project(part), self.options["top_k"], self.options["temperatures"])
                for part in rows.split(CHUNK_ROWS)
            ]
            found = {name: torch.cat([part[name] for part in parts]) for name in NAMES["topk"]}
        found["completion"] = targets.int()
        sizes = list(map(len, completions))
        split = {name: tensor.cpu().split(sizes) for name, tensor in found.items()}
        # Clones: a part would else keep the whole batch in memory.
        return [{name: split[name][row].clone() for name in split} for row in range(len(examples))]

    def read_rows(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Hidden states that predict the completions' tokens, and these; (rows, width) and (rows,)."""
        prompts, completions = ([example[name] for example in examples] for name in ("prompt", "completion"))
        batch = to_device(collate(prompts, completions, self.pad_id), self.model.device)
        return take_rows(read_hidden(self.decoder, batch["input_ids"]), batch["positions"]), batch["targets"]

    def project(self, rows: Tensor) -> Tensor:
        """(rows, vocabulary) float32 logits of hidden states."""
        return project(rows, self.head).float()[:, : self.vocabulary]

    @torch.inference_mode()
    def effective_head(self) -> dict[str, Tensor]:
        """Weight and bias of one linear layer that does what the head does, an adapter on it included."""
        head: Any = self.head
        base = head.get_base_layer() if hasattr(head, "get_delta_weight") else head
        with align_module_device(base, "cpu"):  # it may lie where accelerate has put it
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in base.named_parameters(recurse=False)}
        if head is not base:
            for name in head.active_adapters:
                if name in head.lora_A:
                    tensors["weight"] += head.get_delta_weight(name).to(tensors["weight"])
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @torch.inference_mode()
    def compare(self, example: Example, kept: dict[str, Tensor]) -> tuple[float, float]:
        """How far a kept signal is from the live one.

        Returns:
            The divergence of the kept distribution from the live one in nats a token (of `topk`: over its buckets, at
            its first temperature), and the largest difference of a log-probability among tokens that either finds
            likely.
        """
        rows, _ = self.read_rows([example])
        divergences, largest = [], 0.0
        parts = {name: tensor.to(rows.device).split(CHUNK_ROWS) for name, tensor in kept.items()}
        for at, part in enumerate(rows.split(CHUNK_ROWS)):
            live = self.project(part)
            p, q = self.compare_parts(live, {name: tensors[at] for name, tensors in parts.items()})
            divergences.append((p.exp() * (p - q)).sum(-1))
            likely = torch.maximum(p, q) > LIKELY
            largest = max(largest, (p - q)[likely].abs().max().item())
        return torch.cat(divergences).mean().item(), largest

    def compare_parts(self, live: Tensor, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the same tokens or buckets, live and kept, of some rows."""
        if self.options["kind"] == "hidden":
            return live.log_softmax(-1), self.project(kept["hidden"]).log_softmax(-1)
        temperature = self.options["temperatures"][0]
        live, ids = (live / temperature).log_softmax(-1), kept["ids"].long()
        rest = live.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        top, tail = topk_at(kept["logprobs"], kept["log_tail"][:, 0], temperature)
        both = torch.cat([live.gather(1, ids), rest], -1), torch.cat([top, tail[:, None]], -1)
        p, q = (one.clamp(min=LEAST) for one in both)
        return p, q
