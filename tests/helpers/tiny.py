"""Tiny models and tokenizers built in code, without network or project files."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# With tools, their calls and their results.
TOOLS = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "<call>{{ call['function'] | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Plain text instead of control tokens, as in Zephyr's template.
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXTS = [
    "You are a manager.",
    "me=12.5, profit=0.31: estimate the change",
    '<think>me↑ → more</think>\n<answer>\n{"holding_log_delta": 0.12}\n</answer>',
] * 3
LINES = [line for text in TEXTS for line in text.split("\n")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_tokenizer(
    texts=TEXTS, size=320, special=SPECIAL, template=CHATML, eos="<|im_end|>"
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    # transformers loads the tokenizer of a Qwen2 model with Qwen2's normalizer and pre-tokenizer; both are used here.
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen2.normalizer, qwen2.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>")
    fast.chat_template = template
    return fast


def build_sentencepiece(texts=LINES, size=120, template=ZEPHYR) -> PreTrainedTokenizerFast:
    """A BPE tokenizer with the rules of SentencePiece, as in Llama 2: `▁` for a space, and one before each text."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    words.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    learnt = json.loads(words.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = words.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    fast.chat_template = template
    return fast


def build_model(vocabulary=352, hidden=16, layers=2, seed=0, tied=False, scale=1.0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model.eval()


def save_base_model(folder: Path, **settings) -> str:
    """A model whose EOS token is not the token with which its chat template ends a turn, as in many base models."""
    model = build_model(**settings)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    build_tokenizer(eos="<|endoftext|>").save_pretrained(folder)
    return str(folder)


def count_generated(folder: Path, token: int, most: int = 5) -> int:
    """Tokens that plain `generate` adds with a folder's own settings, if the model generates one token only."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([[5, 6, 7]])
    found = model.generate(prompt, max_new_tokens=most, do_sample=False, prefix_allowed_tokens_fn=lambda *_: [token])
    return found.shape[1] - prompt.shape[1]


def save_model(folder: Path, tokenizer, **settings) -> str:
    build_model(**settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
