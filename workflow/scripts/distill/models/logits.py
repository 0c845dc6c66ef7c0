"""What models do to their logits after the head: scales and soft caps.

Training, signals and likelihoods call decoder and head themselves, so that no tensor of all logits exists. They apply
`LogitTransform` to the head's output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """logits = cap · tanh(scale · head(hidden) / cap), without tanh if there is no cap.

    Attributes:
        scale: factor of the head's output.
        cap: limit of the logits; None for none.
    """

    scale: float = 1.0
    cap: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the head's output is the logits."""
        return self.scale == 1.0 and self.cap is None

    def apply(self, raw: Tensor) -> Tensor:
        """The logits of the head's output, any shape; the same tensor if nothing changes."""
        if self.is_identity:
            return raw
        scaled = raw * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    def differentiate(self, logits: Tensor) -> Tensor | float:
        """The derivative of the logits with respect to the head's output, from the logits, in their shape."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap) ** 2)


IDENTITY = LogitTransform()

# Keys of a text configuration, and the scale or the cap that their value stands for.
SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,  # Cohere
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
    "logits_scaling": lambda value: 1 / value,  # Granite; MiniCPM3, which divides the hidden states instead
    "logits_mup_width_multiplier": lambda value: 1 / value,  # Inkling
}
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM
# Model types that use a key of SCALES in another way than the model it comes from.
SCALES_OF_TYPES: dict[str, dict[str, Callable[[float], float]]] = {
    "hyperclovax": {"logits_scaling": lambda value: value},
    "mpt": {"logit_scale": lambda value: 1.0},  # transformers ignores it
}


def read_transform(config: Any) -> LogitTransform:
    """Read from a model's configuration what happens to the logits after the head.

    Args:
        config: transformers' configuration of a causal model.
    """
    text = config.get_text_config(decoder=True)
    scales = SCALES | SCALES_OF_TYPES.get(text.model_type, {})
    scale = 1.0
    for name, read in scales.items():
        if (value := getattr(text, name, None)) is not None:
            scale *= float(read(value))
    caps = [float(value) for name in CAPS if (value := getattr(text, name, None))]
    return LogitTransform(scale, caps[0] if caps else None)
