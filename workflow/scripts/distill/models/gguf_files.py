"""Arguments with which transformers reads a folder's GGUF file, also of models that it does not know by itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GgufConfig
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.integrations.gguf.gguf_conversion_mapping import DENSE_DECODER_RENAMINGS, GGUF_ARCHS, PermuteRows

from distill.models.rope import list_rope

# Models whose configuration transformers cannot restore from the file alone: it leaves out the width of a head, or the
# layers that differ. Theirs comes from config.json, and so does that of every model with scaled rotary embeddings.
CONFIGURED = ("qwen3", "gemma3_text", "smollm3")


def gguf_settings(model: str, name: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that read a folder's GGUF file, dequantized.

    Args:
        model: folder with config.json.
        name: name of the GGUF file in it.
    """
    GGUF_ARCHS.setdefault("smollm3", build_smollm3_mapping)
    settings = {"gguf_file": name, "quantization_config": GgufConfig(dequantize=True)}
    config = AutoConfig.from_pretrained(Path(model))
    is_scaled = any(one["rope_type"] != "default" for one in list_rope(config))
    return settings | ({"config": config} if is_scaled or config.model_type in CONFIGURED else {})


def unpair_rows(heads: int, width: int) -> torch.Tensor:
    """Order of rows that undoes llama.cpp's pairs of adjacent rotated rows, shape (heads · width,)."""
    return torch.arange(heads * width, device="cpu").reshape(heads, width // 2, 2).transpose(1, 2).reshape(-1)


def build_smollm3_mapping(config: Any) -> list[Any]:
    """How transformers restores the weights of SmolLM3 from llama.cpp's; entry of its registry `GGUF_ARCHS`."""
    names = {r"^output_norm\.": "model.norm.", r"\.attn_norm\.": ".input_layernorm.",
             r"\.ffn_norm\.": ".post_attention_layernorm."}  # fmt: skip
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return [
        *DENSE_DECODER_RENAMINGS,
        *(WeightRenaming(source, target) for source, target in names.items()),
        *(
            WeightConverter(
                source_patterns=f"self_attn.{name}.weight",
                target_patterns=f"self_attn.{name}.weight",
                operations=[PermuteRows(unpair_rows(count, width))],
            )
            for name, count in heads.items()
        ),
    ]
