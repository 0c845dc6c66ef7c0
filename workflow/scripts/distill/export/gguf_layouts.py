"""How GGUF stores the architectures of transformers that can be exported, and which of their settings llama.cpp knows.

llama.cpp fixes some settings in its code and ignores them in the file. A model that differs there would load and answer
wrongly, so `find_layout` refuses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf

from distill.common.errors import InputError
from distill.export.gguf_rope import LOCAL_THETA, find_rope_problem

NO_ROPE_STEP = 4  # SmolLM3 in llama.cpp: every fourth layer has no rotary embeddings
GLOBAL_STEP = 6  # Gemma 3 in llama.cpp: every sixth layer attends to all tokens, the others to a window
LAYERS_27B = 62  # llama.cpp knows Gemma 3 27B, which scales its queries differently, by the number of layers


def require_common(config: Any) -> dict[str, Any]:
    """Requirements of all architectures; one that a configuration does not have is met."""
    return {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * config.num_hidden_layers,
    }


def require_nothing(config: Any) -> dict[str, Any]:
    """Requirements of an architecture that has none of its own."""
    return {}


def require_mistral(config: Any) -> dict[str, Any]:
    """No sliding window, or one that holds the whole context: llama.cpp does not apply it."""
    window = config.sliding_window
    return {"sliding_window": window if window and window >= config.max_position_embeddings else None}


def require_smollm3(config: Any) -> dict[str, Any]:
    """Rotary embeddings in all layers but every fourth one."""
    layers = range(1, config.num_hidden_layers + 1)
    return {"no_rope_layers": [int(layer % NO_ROPE_STEP != 0) for layer in layers]}


def require_gemma3(config: Any) -> dict[str, Any]:
    """The pattern of attention, the scale of the queries and the local rotary embeddings of the published models."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    kinds = ["sliding_attention", "full_attention"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": config.sliding_window or "a number",
        "layer_types": [kinds[layer % GLOBAL_STEP == 0] for layer in range(1, layers + 1)],
        "query_pre_attn_scalar": config.hidden_size // heads if layers == LAYERS_27B else config.head_dim,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        **({"use_bidirectional_attention": False} if config.use_bidirectional_attention else {}),
    }


def add_window(writer: Any, config: Any) -> None:
    """Add the sliding window and the rotary embeddings of its layers to the metadata."""
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(LOCAL_THETA)


def add_nothing(writer: Any, config: Any) -> None:
    """Add no metadata beyond those of all architectures."""


@dataclass(frozen=True)
class Layout:
    """How GGUF stores an architecture of transformers.

    Attributes:
        architecture: member of `gguf.MODEL_ARCH`.
        has_paired_rotation: whether llama.cpp applies rotary embeddings to adjacent rows of queries and keys, instead
            of to the two halves of a head as transformers does.
        norm_offset: number that the model adds to the weights of its norms; llama.cpp expects the sum in the file.
        require: returns settings of config.json with the only value that llama.cpp computes right, from the config.
        add_settings: adds the metadata of this architecture, from the writer and the config.
    """

    architecture: Any
    has_paired_rotation: bool = False
    norm_offset: float = 0.0
    require: Callable[[Any], dict[str, Any]] = require_nothing
    add_settings: Callable[[Any, Any], None] = add_nothing


LAYOUTS = {
    "Qwen2ForCausalLM": Layout(gguf.MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Layout(gguf.MODEL_ARCH.QWEN3),
    "LlamaForCausalLM": Layout(gguf.MODEL_ARCH.LLAMA, has_paired_rotation=True),
    "MistralForCausalLM": Layout(gguf.MODEL_ARCH.LLAMA, has_paired_rotation=True, require=require_mistral),
    "SmolLM3ForCausalLM": Layout(gguf.MODEL_ARCH.SMOLLM3, has_paired_rotation=True, require=require_smollm3),
    "Gemma3ForCausalLM": Layout(
        gguf.MODEL_ARCH.GEMMA3, norm_offset=1.0, require=require_gemma3, add_settings=add_window
    ),
}


def find_layout(model: str, config: Any) -> Layout:
    """The layout for a model's configuration.

    Raises:
        InputError: the architecture or one of its settings is not supported; names it.
    """
    names = getattr(config, "architectures", None) or ["none"]
    if names[0] not in LAYOUTS:
        raise unsupported(model, f"expected the architecture {' or '.join(LAYOUTS)}, found {names[0]}")
    layout = LAYOUTS[names[0]]
    for name, expected in (require_common(config) | layout.require(config)).items():
        if hasattr(config, name) and (found := getattr(config, name)) != expected:
            raise unsupported(model, f"expected {name} {expected!r} in config.json, found {found!r}")
    if problem := find_rope_problem(config, layout.architecture == gguf.MODEL_ARCH.LLAMA):
        raise unsupported(model, problem)
    return layout


def unsupported(model: str, problem: str) -> InputError:
    """The error for a model that GGUF files cannot hold."""
    return InputError(f"{model}: variant gguf: {problem}; remove the gguf variants from export.variants")


def get_head_width(config: Any) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
