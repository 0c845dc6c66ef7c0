"""GGUF files that transformers reads back, checks of exports that fail on a wrong model, and quantized folders."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from running import ROOT
from tiny import build_model, build_tokenizer, save_base_model
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from distill.common import disk
from distill.common.errors import InputError
from distill.export import gguf_tokenizer, gguf_weights
from distill.export.export_model import Export, call_fresh, check_export, export_student, write_variant
from distill.export.gguf_layouts import find_layout
from distill.export.gguf_tokenizer import SPLITS, find_pre_tokenizer
from distill.models.fingerprint import find_gguf, fingerprint_files
from distill.models.load import load_config, load_model

CPU = torch.device("cpu")


def build_llama(tied):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=352,
        hidden_size=64,
        intermediate_size=80,  # not a multiple of 32, so mlp.down_proj is stored in float16
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    return LlamaForCausalLM(config).eval()


def save_student(folder, kind="llama", tied=False):
    """A student with large attention weights, so that heads in the wrong order change its logits."""
    model = build_llama(tied) if kind == "llama" else build_model(hidden=64, tied=tied)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                weight.mul_(10)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def write_export(student, variant, folder):
    folder.mkdir()
    export = Export(student, variant, "float32", "cpu")
    write_variant(export, folder)
    return export, folder


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_gguf_weights_are_the_students_up_to_rounding(tmp_path, kind, tied):
    student = save_student(tmp_path / "student", kind, tied)
    _, folder = write_export(student, "gguf", tmp_path / "gguf")
    original = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    # From the GGUF file alone: config.json is not read.
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rope_parameters", "rms_norm_eps"):
        assert getattr(read.config, name) == pytest.approx(getattr(original.config, name)), name
    assert read.config.tie_word_embeddings == tied
    found = read.state_dict()
    for name, weight in original.state_dict().items():
        if weight.dim() == 1:
            assert found[name].equal(weight), name
            continue
        size = 32 if weight.shape[-1] % 32 == 0 else 1  # the others are float16, with a mantissa of 10 bits
        largest = weight.unflatten(-1, (-1, size)).abs().amax(-1, keepdim=True)
        error = (found[name] - weight).unflatten(-1, (-1, size)).abs()
        # Half a quantization step, and a margin because the step itself is rounded to float16.
        assert (error <= 0.55 * largest / (127 if size > 1 else 2**10) + 1e-6).all(), name
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == gguf.GGMLQuantizationType.Q8_0
    assert ("output.weight" in types) == (not tied)
    assert find_gguf(folder) == "model.gguf"
    assert find_gguf(student) is None


def test_the_check_detects_heads_in_the_wrong_order(tmp_path, monkeypatch):
    student = save_student(tmp_path / "student")
    found = check_export(*write_export(student, "gguf", tmp_path / "gguf"))
    assert found["distance"] < 0.1
    assert found["answer"]
    monkeypatch.setattr(gguf_weights, "pair_rotated_rows", lambda weight, heads: weight)
    export, wrong = write_export(student, "gguf", tmp_path / "wrong")
    assert fingerprint_files(wrong) != fingerprint_files(tmp_path / "gguf")
    with pytest.raises(InputError, match="variant gguf: expected logits at a distance of at most 0.3 .* found"):
        check_export(export, wrong)


def test_the_check_detects_another_tokenizer(tmp_path, monkeypatch):
    student = save_student(tmp_path / "student")
    monkeypatch.setattr(gguf_tokenizer, "list_merges", lambda tokenizer: ["a b"])
    export, folder = write_export(student, "gguf", tmp_path / "gguf")
    monkeypatch.undo()
    with pytest.raises(InputError, match="expected the tokenizer of .*, found a different one"):
        check_export(export, folder)
    (folder / "generation_config.json").unlink()
    with pytest.raises(InputError, match="expected generation_config.json, found no such file"):
        check_export(export, folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["Phi3ForCausalLM"]}, "Llama.*, found Phi3ForCausalLM; remove the gguf variants from"),
        ({"attention_bias": True}, "expected attention_bias False in config.json, found True"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "found 'dynamic'"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, changes, said):
    student = save_student(tmp_path / "student")
    path = tmp_path / "student/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=said):
        find_layout(student, load_config(student))


def test_pre_tokenizers_are_recognized_by_how_they_split(tmp_path):
    tokenizer = build_tokenizer()
    assert find_pre_tokenizer(tokenizer) == "qwen2"
    whole, plain = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel(False, use_regex=False)
    split = next(pattern for pattern, name in SPLITS.items() if name == "llama-bpe")
    ways = {
        "gpt-2": whole,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), plain]),
    }
    for name, way in ways.items():
        tokenizer.backend_tokenizer.pre_tokenizer = way
        assert find_pre_tokenizer(tokenizer) == name
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=r"found BPE with .*ByteLevel.* and the normalizer .*Lowercase"):
        find_pre_tokenizer(tokenizer)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match=r"expected a byte-level BPE tokenizer .* found BPE with .*Whitespace"):
        find_pre_tokenizer(tokenizer)


@pytest.mark.parametrize("variant", ["full", "int8", "gguf"])
def test_an_export_of_a_base_model_stops_in_other_programs(tmp_path, variant):
    student = save_base_model(tmp_path / "student", hidden=64)
    export, folder = write_export(student, variant, tmp_path / "out")
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 0]
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    check_export(export, folder)


@pytest.mark.parametrize("variant", ["full", "gguf"])
def test_an_export_that_does_not_stop_is_refused(tmp_path, monkeypatch, variant):
    monkeypatch.setattr("distill.export.export_model.write_stop_tokens", lambda folder: None)
    monkeypatch.setattr("distill.export.gguf_tokenizer.get_end_of_turn_id", lambda tokenizer: tokenizer.eos_token_id)
    export, folder = write_export(save_base_model(tmp_path / "student", hidden=64), variant, tmp_path / "out")
    with pytest.raises(InputError, match=r"to stop after '<\|im_end\|>' \(token 2\).* found 15 more .* folder are 0"):
        check_export(export, folder)


def test_a_model_that_cannot_compute_with_quantized_weights_is_refused(tmp_path):
    """Mamba multiplies with a weight itself instead of calling its linear layer."""
    torch.manual_seed(0)
    shape = {"vocab_size": 352, "hidden_size": 64, "state_size": 4, "num_hidden_layers": 2, "use_cache": True}
    model = MambaForCausalLM(MambaConfig(**shape, bos_token_id=None, eos_token_id=2, pad_token_id=0))
    model.save_pretrained(tmp_path / "student")
    build_tokenizer().save_pretrained(tmp_path / "student")
    export, folder = write_export(str(tmp_path / "student"), "int8", tmp_path / "out")
    expected = "variant int8: .*its decoder and head cannot be run: .*; remove int8 from export.variants"
    with pytest.raises(InputError, match=expected):
        check_export(export, folder)


@pytest.mark.parametrize("variant", ["int8", "nf4"])
def test_quantized_folders_load_as_they_are_stored(tmp_path, variant):
    """A regression test: quantized weights were once loaded as plain numbers."""
    student = save_student(tmp_path / "student", "qwen2")
    export, folder = write_export(student, variant, tmp_path / "out")
    loaded = load_model(str(folder), CPU, torch.float32)
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[variant]
    found = check_export(export, folder)
    assert found["distance"] < {"int8": 0.2, "nf4": 0.7}[variant]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (Path(student) / name).read_bytes()


@pytest.mark.parametrize("variant", ["full", "gguf_q4_k_m"])
def test_a_disk_without_room_for_an_export_is_said_before_it_is_written(tmp_path, monkeypatch, variant):
    student = save_student(tmp_path / "student")
    weights = sum(path.stat().st_size for path in Path(student).iterdir())
    needed = weights * (2 if variant == "gguf_q4_k_m" else 1)
    free = {"bytes": needed * 0.9}
    monkeypatch.setattr(disk, "find_free", lambda _: free["bytes"])
    export, out = Export(str(student), variant, "float32", "cpu"), tmp_path / "export"
    with pytest.raises(InputError, match=rf"export: expected .* of free disk for the variant {variant}, found"):
        export_student(export, out)
    assert not out.exists()


def test_errors_and_kills_of_a_fresh_process_are_raised():
    with pytest.raises(InputError, match="no such folder"):
        call_fresh(load_config, "./not/there")
    with pytest.raises(InputError, match="_exit: expected the process to finish, found it killed"):
        call_fresh(os._exit, 9)


def test_a_fresh_process_ends_with_its_parent():
    """A job that is killed, for example by the memory limit, must not leave a process on the GPU."""
    work = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"from distill.export.export_model import call_fresh; call_fresh(exec, {work!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        fresh = int(parent.stdout.readline())
        parent.kill()
        try:
            parent.communicate(timeout=30)  # until the fresh process, which inherits the pipe, has ended, too
        except subprocess.TimeoutExpired:
            os.kill(fresh, signal.SIGKILL)
            raise
