"""Quantize a student with LLM Compressor, as a program in the environment that has it.

    python compress_program.py SETTINGS.json

The settings are `student` and `out` (folders), `variant`, `dtype`, and `samples`, the token ids of the calibration
texts. LLM Compressor needs other versions of its packages than the workflow, so this file imports nothing of the
workflow, and the workflow imports nothing of it but its path.
"""

import json
import sys
from pathlib import Path
from typing import Any

GROUP_SIZES = (128, 64, 32)  # that kernels support, the cheapest first


def choose_group_size(widths: dict[str, int]) -> int:
    """Return the largest group size that divides the numbers of inputs of all layers.

    Args:
        widths: number of inputs by layer.

    Raises:
        SystemExit: there is none; names a layer.
    """
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths.values()):
            return size
    name, width = next((name, width) for name, width in widths.items() if width % GROUP_SIZES[-1])
    raise SystemExit(f"gptq: expected layers of {GROUP_SIZES[-1]}·n inputs, found {width} in {name}")


def make_recipe(variant: str, model: Any, ignored: list[str]) -> Any:
    """Return the modifier of LLM Compressor for a variant.

    Args:
        variant: `gptq` or `fp8`.
        model: model of transformers.
        ignored: names of layers that are not quantized.
    """
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    if variant == "fp8":
        return QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=ignored)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    size = choose_group_size({name: layer.in_features for name, layer in layers.items() if name not in ignored})
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=size, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return GPTQModifier(config_groups={"group_0": scheme}, ignore=ignored)


def main(path: str) -> None:
    """Quantize the student and write its weights and config.json."""
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, settings["dtype"])
    model = AutoModelForCausalLM.from_pretrained(settings["student"], dtype=dtype)
    head = model.get_output_embeddings()
    ignored = [name for name, layer in model.named_modules() if layer is head]
    options: dict[str, Any] = {}
    if samples := settings["samples"]:
        data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples])
        longest = max(map(len, samples))
        options = {"dataset": data, "num_calibration_samples": len(samples), "max_seq_length": longest}
    oneshot(model=model, recipe=make_recipe(settings["variant"], model, ignored), **options)
    model.save_pretrained(settings["out"], save_compressed=True, max_shard_size="1000GB")
    (Path(settings["out"]) / "recipe.yaml").unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1])
