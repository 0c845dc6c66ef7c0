"""Registry of the schemes that round weights to few bits: what a training simulates, and an export writes.

A scheme rounds the weights of the decoder's linear layers in groups that share a scale; activations, embeddings, norms
and the head stay as they are. To add a scheme, add an entry to SCHEMES, and its rounding to models/weight_rounding.py
if it has another kind of numbers. Configuration, command lines, variants and model cards read this registry.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizationScheme:
    """How weights are rounded.

    Attributes:
        numbers: the kind of numbers, as a noun phrase.
        variant: name of the exported variant with weights of this scheme.
        bits: bits per weight, without the scales.
        is_float: whether the numbers are floating-point numbers (E2M1) instead of integers.
        group: neighbouring weights of a row that share a scale; None for all weights of a row.
        format: format of the weights in a checkpoint of compressed-tensors.
    """

    numbers: str
    variant: str
    bits: int
    group: int | None
    format: str
    is_float: bool = False

    @property
    def description(self) -> str:
        """A sentence for model cards and the configuration reference."""
        shared = f"groups of {self.group} weights" if self.group else "each output channel"
        return f"{self.numbers} with a scale for {shared}; activations are not quantized."


SCHEMES: dict[str, QuantizationScheme] = {
    "int4": QuantizationScheme("Symmetric 4-bit integers", "w4a16", 4, 32, "pack-quantized"),
    "int8": QuantizationScheme("Symmetric 8-bit integers", "w8a16", 8, None, "pack-quantized"),
    "nvfp4": QuantizationScheme(
        "4-bit floating-point numbers (NVFP4: E2M1 with scales in E4M3)",
        "nvfp4a16",
        4,
        16,
        "nvfp4-pack-quantized",
        is_float=True,
    ),
}
