"""Models with random weights in the shapes that the benchmarks measure; nothing is downloaded."""

import copy
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.models.memory import quantized_layers

INT8_THRESHOLD = 6.0  # outlier threshold of LLM.int8(), the default of BitsAndBytesConfig


def qwen2(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> Any:
    """Make the configuration of a Qwen2 model."""
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
    )


# (teacher, student, size of the shared vocabulary). As in Qwen2.5, head and embeddings are tied in small models only,
# and the vocabulary of a larger model has more padding.
SHAPES = {
    "small": (qwen2(512, 8, 2048, 8, 4, 151936, False), qwen2(256, 6, 1024, 4, 2, 151936, True), 151936),
    "qwen2.5-7b-1.5b": (
        qwen2(3584, 28, 18944, 28, 4, 152064, False),
        qwen2(1536, 28, 8960, 12, 2, 151936, True),
        151936,
    ),
    # The student is Qwen1.5-1.8B.
    "qwen2.5-7b-1.8b": (
        qwen2(3584, 28, 18944, 28, 4, 152064, False),
        qwen2(2048, 24, 5504, 16, 16, 151936, False),
        151936,
    ),
    "tiny": (qwen2(64, 2, 128, 4, 2, 656, False), qwen2(32, 2, 64, 4, 2, 640, False), 640),
}


def build(config: Any, seed: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Build a model with seeded random weights; the head is scaled up so that its distributions are not uniform."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(copy.deepcopy(config), dtype=dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3.0)
    return model


@torch.no_grad()
def quantize_int8(model: Any) -> None:
    """Quantize a model in memory to what `load_model` with `int8` reads from a folder.

    Args:
        model: a causal model on the device on which it stays; its layers are replaced one by one.
    """
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for name, layer in quantized_layers(model).items():
        sizes = layer.in_features, layer.out_features
        settings = {"has_fp16_weights": False, "threshold": INT8_THRESHOLD, "device": "meta"}
        new = Linear8bitLt(*sizes, layer.bias is not None, **settings)
        # bitsandbytes quantizes a weight when it is moved from the CPU.
        weight = Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        new.weight = weight.to(layer.weight.device)
        new.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new.train(layer.training))
