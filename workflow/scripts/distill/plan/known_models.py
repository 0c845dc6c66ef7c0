"""Shapes of well-known models, so that a memory plan needs no network: content of config.json by Hugging Face id."""

from typing import Any

# Sizes of Qwen2 models: hidden size, layers, attention heads, key/value heads, width of the feed-forward layers, rows
# of the embedding, whether the head is tied to it.
QWEN2 = {
    "Qwen/Qwen2.5-0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "Qwen/Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2.5-3B": (2048, 36, 16, 2, 11008, 151936, True),
    "Qwen/Qwen2.5-7B": (3584, 28, 28, 4, 18944, 152064, False),
    "Qwen/Qwen2.5-14B": (5120, 48, 40, 8, 13824, 152064, False),
    "Qwen/Qwen2.5-32B": (5120, 64, 40, 8, 27648, 152064, False),
    "Qwen/Qwen2.5-72B": (8192, 80, 64, 8, 29568, 152064, False),
    "Qwen/Qwen1.5-1.8B": (2048, 24, 16, 16, 5504, 151936, False),
}
SUFFIXES = ("", "-Instruct", "-Chat")  # chat models have the shape of their base


def make_qwen2_config(
    hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    """The content of a Qwen2 model's config.json that decides its memory."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
    }


KNOWN_MODELS = {f"{name}{suffix}": make_qwen2_config(*sizes) for name, sizes in QWEN2.items() for suffix in SUFFIXES}
