"""Tiny models of the architectures that can be exported as GGUF, with the settings in which they differ."""

import torch
from tiny import CHATML, TEXTS, build_tokenizer
from tokenizers import Tokenizer, models, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.tokenization_utils_base import generate_merges

SIZES = {
    "vocab_size": 352,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
# Heads of 32 where the architecture allows it: 4 · 32 is not the hidden size.
FAMILIES = {
    "qwen2": lambda: Qwen2Config(**SIZES, num_hidden_layers=2, rope_parameters=ROPE),
    "qwen3": lambda: Qwen3Config(**SIZES, num_hidden_layers=2, rope_parameters=ROPE, head_dim=32),
    "llama": lambda: LlamaConfig(**SIZES, num_hidden_layers=2, rope_parameters=ROPE, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(
        **SIZES, num_hidden_layers=2, rope_parameters=ROPE, head_dim=32, sliding_window=None
    ),
    "qwen2, yarn": lambda: Qwen2Config(
        **SIZES,
        num_hidden_layers=2,
        rope_parameters=ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "qwen3, linear": lambda: Qwen3Config(
        **SIZES, num_hidden_layers=2, head_dim=32, rope_parameters=ROPE | {"rope_type": "linear", "factor": 3.0}
    ),
    "llama 3": lambda: LlamaConfig(
        **SIZES,
        num_hidden_layers=2,
        rope_parameters=ROPE
        | {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    # Layer 4 has no rotary embeddings.
    "smollm3": lambda: SmolLM3Config(**SIZES, num_hidden_layers=5, rope_parameters=ROPE),
    # Layer 6 attends to all tokens, the others to 8.
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=7,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}


def save_family(folder, name, tokenizer=None):
    """A student of an architecture, with weights large enough that a wrong layout changes its logits by much."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[name](), dtype=torch.float32).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.add_(0.3 * torch.randn_like(weight))
            elif key.endswith("bias"):
                weight.normal_()
            elif "_proj" in key:
                weight.mul_(6)
            else:
                weight.mul_(15)
    model.save_pretrained(folder)
    (tokenizer or build_tokenizer()).save_pretrained(folder)
    return str(folder)


def build_gemma_tokenizer():
    """A tokenizer like Gemma's: SentencePiece with byte fallback, and no space before the text."""
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    trained.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    learned = sorted(trained.get_vocab().items(), key=lambda pair: pair[1])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token, _ in learned), "▁▁", "▁▁▁"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(
        vocabulary, generate_merges(vocabulary), mask_token=None, extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer
