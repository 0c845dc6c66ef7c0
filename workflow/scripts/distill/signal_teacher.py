"""The teacher in memory: what is kept of its distribution, and how a kept signal compares with the live one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.batching import Example, collate, to_device
from distill.completions import CHUNK_ROWS, take_rows
from distill.losses import project
from distill.models import decoder_and_head, load_model, select_device, select_dtype
from distill.signals import NAMES

# Largest difference of log-probabilities that is rounding: of bfloat16 states through a head, of float16
# log-probabilities, in a batch of another shape.
TOLERANCE = 0.25
LIKELY = (
    -8.0
)  # log-probability from which on tokens are compared: rounding moves others by more, and they count for less
LEAST_LOG = -60000.0  # float16 holds it

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
        self.model = load_model(options["model"], device, dtype, *settings, for_generation=False)
        self.decoder, self.head = decoder_and_head(self.model)
        self.options, self.pad_id, self.vocabulary = options, tokenizer.pad_token_id, vocabulary

    @torch.inference_mode()
    def compute(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The signal of each example, on the CPU."""
        completions = [example["completion"] for example in examples]
        batch = collate([example["prompt"] for example in examples], completions, self.pad_id)
        batch = to_device(batch, self.model.device)
        hidden = self.decoder(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        rows = take_rows(hidden, batch["positions"])
        if self.options["kind"] == "hidden":
            found = {"hidden": rows.bfloat16()}
        else:
            parts = [
                top_log_probabilities(self.project(part), self.options["top_k"], self.options["temperatures"])
                for part in rows.split(CHUNK_ROWS)
            ]
            found = {name: torch.cat([part[name] for part in parts]) for name in NAMES["topk"]}
        found["completion"] = batch["targets"].int()
        sizes = list(map(len, completions))
        split = {name: tensor.cpu().split(sizes) for name, tensor in found.items()}
        # Clones: a part would else keep the whole batch in memory.
        return [{name: split[name][row].clone() for name in split} for row in range(len(examples))]

    def project(self, rows: Tensor) -> Tensor:
        """(rows, vocabulary) float32 logits of hidden states."""
        return project(rows, self.head).float()[:, : self.vocabulary]

    @torch.inference_mode()
    def effective_head(self) -> dict[str, Tensor]:
        """Weight and bias of one linear layer that does what the head does, an adapter on it included."""
        head: Any = self.head
        if hasattr(head, "get_delta_weight"):
            base = head.get_base_layer()
            names = [name for name in head.active_adapters if name in head.lora_A]
            weight = base.weight + sum(head.get_delta_weight(name) for name in names)
            head = torch.nn.Linear(1, 1, bias=base.bias is not None)
            head.weight, head.bias = torch.nn.Parameter(weight), base.bias
        tensors = {"weight": head.weight} | ({"bias": head.bias} if head.bias is not None else {})
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def compare(self, example: Example, kept: dict[str, Tensor]) -> float:
        """Largest difference of log-probabilities between a kept signal and the live one."""
        (live,) = self.compute([example])
        with torch.inference_mode():
            if self.options["kind"] == "hidden":
                one, other = (
                    self.project(part["hidden"].to(self.model.device)).log_softmax(-1) for part in (kept, live)
                )
                return compare_likely(one, other)
            # On the tokens that are kept now and then: of near ties at the end either may be kept.
            one, other = (dense_log_probabilities(part, self.vocabulary) for part in (kept, live))
            both = one.isfinite() & other.isfinite()
            likely = both & (torch.maximum(one, other) > LIKELY)
            tails = (kept["log_tail"].float().exp() - live["log_tail"].float().exp()).abs().max().item()
            return max((one - other)[likely].abs().max().item() if likely.any() else torch.inf, tails)


def compare_likely(one: Tensor, other: Tensor) -> float:
    """Largest difference among tokens that either side finds likely."""
    return (one - other)[torch.maximum(one, other) > LIKELY].abs().max().item()


def dense_log_probabilities(kept: dict[str, Tensor], vocabulary: int) -> Tensor:
    """(rows, vocabulary) of a top-k signal, -inf for all that is not kept."""
    rows = torch.full((len(kept["ids"]), vocabulary), -torch.inf)
    return rows.scatter_(1, kept["ids"].long(), kept["logprobs"].float())
