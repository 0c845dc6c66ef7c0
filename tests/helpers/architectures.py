"""Tiny models of the causal architectures that transformers knows, built from their configurations.

`python tests/helpers/architectures.py` writes the table of docs/models.md.
"""

import copy
import inspect
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from distill.export.gguf_layouts import LAYOUTS
from distill.models.architectures import UNGENERATED, UNSAVED, UNSUPPORTED

PAGE = Path(__file__).parents[2] / "docs/models.md"

VOCABULARY = 320
LARGEST = 5_000_000  # weights of a tiny model
# Sizes, each with the names that configurations give it; a configuration takes those that it knows.
NAMES = {
    VOCABULARY: ("vocab_size vocab_size_per_layer_input "),
    32: (
        "hidden_size d_model n_embd embedding_size word_embed_proj_dim n_embed dim model_dim lru_width "
        "attention_hidden_size moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "shared_intermediate_size moe_shared_expert_intermediate_size output_embedding_size input_embedding_size "
    ),
    8: (
        "hidden_size_per_layer_input head_dim kv_channels global_head_dim attention_head_dim qk_nope_head_dim "
        "qk_rope_head_dim v_head_dim index_head_dim state_size mamba_d_state ssm_state_size linear_key_head_dim "
        "linear_value_head_dim rotary_dim dim_head "
    ),
    64: (
        "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim "
        "dense_intermediate_size mamba_d_ssm "
    ),
    2: (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks "
        "num_key_value_heads num_kv_heads multi_query_group_num index_n_heads num_experts_per_tok expand "
        "mamba_expand linear_num_key_heads eos_token_id moe_k "
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts mamba_n_heads mamba_num_heads "
        "time_step_rank mamba_dt_rank linear_num_value_heads "
    ),
    16: ("q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim sliding_window attention_window_size "),
    1: ("n_group topk_group num_expert_group mamba_n_groups n_groups bos_token_id "),
    256: ("max_position_embeddings n_positions n_ctx max_seq_len seq_length max_sequence_length "),
    0: ("num_kv_shared_layers pad_token_id "),
}
SIZES = {name: size for size, names in NAMES.items() for name in names.split()}

# Types whose tiny model does not keep the records of a packed row apart: their layers carry a state from token to
# token, or transformers gives them a mask or positions that disregard the position ids. `check_packing` finds out.
UNPACKED = (
    "afmoe bailing_hybrid bamba bart bert-generation bigbird_pegasus biogpt blenderbot blenderbot-small bloom "
    "deepseek_v4 falcon falcon_h1 falcon_mamba gpt_oss granitemoehybrid inkling2_text inkling_text jamba kimi_linear "
    "lfm2_moe lfm3 mamba mamba2 marian mbart minimax mpt mvp nemotron_h olmo_hybrid openai-gpt opt pegasus plbart "
    "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma reformer rwkv trocr xglm xlnet "
    "xlstm zaya"
)

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
# Sizes of single model types, where those above do not fit together.
SPECIAL = {
    "mamba2": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "dots1": {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "dots3_note": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "bailing_hybrid": {"layer_group_size": 2},
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {"pronunciation_vocab_size": 9, "pronunciation_embed_dim": 8}
    | {"shape_vocab_size": 9, "shape_embed_dim": 8},
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 16]},
    "xlm": {"emb_dim": 32},
    "gemma3": {"vision_config": VISION, "mm_tokens_per_image": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "dots3_note_text": {"num_key_value_heads": 4, "num_hidden_layers": 2},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
    }
    | {"num_experts_per_token": 2, "linear_head_dim": 8, "linear_num_heads": 4, "head_dim": 16, "qk_head_dim": 16},
    "recurrent_gemma": {"num_hidden_layers": 3},  # every third layer has attention
    "xlstm": {"hidden_size": 128},  # the state of its cells has multiples of 64 columns
}


def list_types():
    """Model types with a causal language model, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def make_config(model_type, **settings):
    """A configuration with small sizes.

    Args:
        model_type: key of transformers' CONFIG_MAPPING.
        settings: further keys of the configuration.
    """
    kind = CONFIG_MAPPING[model_type]
    nested = {name: choose_sizes(sub) for name, sub in getattr(kind, "sub_configs", {}).items() if "text" in name}
    config = kind(**(choose_sizes(kind) | nested | SPECIAL.get(model_type, {}) | settings))
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def choose_sizes(kind):
    """The sizes that a class of configurations knows."""
    names = {name for parent in kind.__mro__ for name in getattr(parent, "__annotations__", {})}
    names |= set(inspect.signature(kind.__init__).parameters)
    sizes = {name: value for name, value in SIZES.items() if name in names}
    if "layer_types" in names and "num_hidden_layers" in names:
        sizes["num_hidden_layers"] = 4  # hybrids need a layer with attention
    if "kv_lora_rank" in names:  # latent attention has no groups of heads
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return sizes


def build(model_type, seed=0, **settings):
    """A tiny model with random weights, in evaluation mode and float32.

    Raises:
        ValueError: the configuration has further sizes, so that the model is not tiny.
    """
    config = make_config(model_type, **settings)
    with torch.device("meta"):
        size = sum(one.numel() for one in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} weights")
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def list_unbuilt():
    """Types without a tiny model."""
    found = set()
    for model_type in list_types():
        try:
            build(model_type)
        except Exception:  # transformers raises anything for sizes that do not fit together
            found.add(model_type)
    return found


def render_table(unbuilt):
    """The table of docs/models.md.

    Args:
        unbuilt: types without a tiny model.
    """
    lines = ["| `model_type` | class | teacher, student | packing | GGUF |", "| --- | --- | --- | --- | --- |"]
    for model_type in list_types():
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        name = names if isinstance(names, str) else names[0]
        support = "not tested" if model_type in unbuilt else "yes"
        if reason := (UNSUPPORTED | UNGENERATED).get(model_type):
            support = f"refused: {reason}"
        elif reason := UNSAVED.get(model_type):
            support = f"teacher only: {reason}"
        is_packed = model_type not in (*unbuilt, *UNSUPPORTED, *UNPACKED.split())
        answers = ("yes" if one else "" for one in (is_packed, name in LAYOUTS))
        lines.append(f"| `{model_type}` | {name} | {support} | {' | '.join(answers)} |")
    return "\n".join(lines)


def update_page(text, unbuilt):
    """The page with a new table."""
    start, end = "<!-- architectures -->\n", "<!-- end of architectures -->"
    head, _, rest = text.partition(start)
    return f"{head}{start}\n{render_table(unbuilt)}\n\n{end}{rest.partition(end)[2]}"


def read_unbuilt(text):
    """The types that the page lists as not tested."""
    return {line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "| not tested |" in line}


if __name__ == "__main__":
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8"), list_unbuilt()), encoding="utf-8")
