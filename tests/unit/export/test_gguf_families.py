"""GGUF files of every supported architecture: read back by transformers, and held against llama.cpp if it is there.

The environment variable LLAMA_CPP_PYTHON names the interpreter of an environment with the package xllamacpp, which
brings llama.cpp: `python -m venv llama && llama/bin/pip install xllamacpp`, then LLAMA_CPP_PYTHON=llama/bin/python.
"""

import json
import os
import random
import subprocess
import sys
import urllib.request
from pathlib import Path

import gguf
import gguf_families
import pytest
import torch
from gguf import GGUFReader
from gguf_families import FAMILIES, build_gemma_tokenizer, save_family
from running import ROOT
from tiny import CHATML, build_tokenizer
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from distill.common.errors import InputError
from distill.common.variants import VARIANTS
from distill.export.export_model import Export, check_export, compare_logits, read_logits, write_variant
from distill.export.gguf_layouts import LAYOUTS, find_layout
from distill.export.gguf_sentencepiece import find_problem
from distill.export.gguf_tokenizer import SPLITS, WHOLE_PIECES, add_tokenizer, find_pre_tokenizer
from distill.export.gguf_weights import F16, convert_weight
from distill.models.load import load_config, load_model, load_tokenizer

CPU = torch.device("cpu")
LLAMA_CPP_PYTHON = os.environ.get("LLAMA_CPP_PYTHON")
TEXT = "You are a manager. me=12.5, profit=0.31: estimate the change of me, isn't it 1024?"
TEXTS = [
    TEXT,
    "  You  are\n\n a   manager .\t漢字 🙂 é <0x41> <|im_end|>xyzq",
    "",
    " ",
    "▁",
    "aaaaaaa",
    "estimate=" * 9,
]
FORMATS = {"gguf": 0.3, "gguf_f16": 0.05}  # largest difference of log-probabilities in llama.cpp, in nats


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}


def write_export(tmp_path, family, variant, tokenizer=None):
    student = save_family(tmp_path / "student", family, tokenizer)
    export, folder = Export(student, variant, "float32", "cpu"), tmp_path / variant
    folder.mkdir()
    write_variant(export, folder)
    return export, folder


def test_every_layout_is_tested():
    built = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[make().model_type] for make in FAMILIES.values()}
    assert built == set(LAYOUTS)


@pytest.mark.parametrize("variant", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_read_back_as_the_students_weights(tmp_path, family, variant):
    export, folder = write_export(tmp_path, family, variant)
    found = check_export(export, folder)
    assert found["distance"] < {"gguf": 0.1, "gguf_f16": 0.002}[variant]
    loaded = load_model(str(folder), CPU, torch.float32).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(export.student).state_dict().items():
        steps = 2**11 if variant == "gguf_f16" or weight.shape[-1] % 32 else 100  # rounding relative to the largest
        assert (loaded[name] - weight).abs().max() <= weight.abs().max() / steps, name
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == {"gguf": "Q8_0", "gguf_f16": "F16"}[variant]
    assert types["output_norm.weight"] == "F32"


@pytest.mark.parametrize("family", ["qwen3", "smollm3", "gemma3"])
def test_llama_cpp_quantizes_to_q4_k_m(tmp_path, monkeypatch, family):
    pytest.importorskip("cyllama")
    monkeypatch.setattr(gguf_families, "SIZES", gguf_families.SIZES | {"hidden_size": 256, "intermediate_size": 512})
    export, folder = write_export(tmp_path, family, "gguf_q4_k_m")
    assert check_export(export, folder)["distance"] < 0.9
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == "Q4_K"
    assert types["output.weight" if family == "qwen3" else "token_embd.weight"] == "Q6_K"
    assert [path.name for path in folder.glob("*.gguf")] == ["model.gguf"]


def test_q4_k_m_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyllama.llama.llama_cpp", None)
    with pytest.raises(InputError, match="expected the package cyllama, .* cannot be imported .*pip install cyllama"):
        write_export(tmp_path, "qwen3", "gguf_q4_k_m")


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mistral", {"sliding_window": 128}, "expected sliding_window None in config.json, found 128"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, r"expected no_rope_layers \[1, 1, 1, 0, 1\] .* found \[1, 0"),
        ("qwen3", {"attention_bias": True}, "expected attention_bias False"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "expected layer_types .* found"),
        ("gemma3", {"query_pre_attn_scalar": 64}, "expected query_pre_attn_scalar 32 in config.json, found 64"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "expected layer_types .*sliding_attention.* found"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "expected final_logit_softcapping None"),
        ("gemma3", {"use_bidirectional_attention": True}, "expected use_bidirectional_attention False"),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
                }
            },
            "expected rope_parameters.sliding_attention .*10000.0.* found .*5000.0",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "expected rope_type default or linear or yarn or llama3 in config.json, found 'dynamic'",
        ),
        ("qwen2", {"rope_parameters": LLAMA3}, "expected rope_type default or linear or yarn in .* found 'llama3'"),
        (
            "qwen2",
            {"rope_parameters": YARN | {"beta_fast": 16}},
            "expected beta_fast 32 in .* found 16",
        ),
        ("qwen2", {"rope_parameters": YARN | {"mscale": 0.7}}, "expected mscale None in rope_parameters .* found 0.7"),
        ("qwen2", {"rope_parameters": YARN | {"attention_factor": 1.0}}, "expected attention_factor 1.1386 .* found 1"),
    ],
)
def test_settings_that_llama_cpp_ignores_are_refused(tmp_path, family, changes, said):
    student = save_family(tmp_path / "student", family)
    find_layout(student, load_config(student))
    path = tmp_path / "student/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=said):
        find_layout(student, load_config(student))


def test_a_mistral_window_that_holds_the_context_is_supported(tmp_path):
    student = save_family(tmp_path / "student", "mistral")
    path = tmp_path / "student/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 512}))
    assert find_layout(student, load_config(student)) is LAYOUTS["MistralForCausalLM"]


def test_the_template_without_tools_is_written(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools }}" + CHATML}
    export, folder = write_export(tmp_path, "qwen2", "gguf", tokenizer)
    check_export(export, folder)
    reader = GGUFReader(folder / "model.gguf")
    assert reader.get_field("tokenizer.chat_template").contents() == CHATML


def test_numbers_beyond_float16_are_refused():
    weight = torch.ones(2, 32).numpy()
    weight[1, 3] = 70000
    with pytest.raises(InputError, match="model: up_proj: variant gguf: expected numbers up to 65504 for F16"):
        convert_weight(weight, "model: up_proj", F16)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_the_code_of_the_model_card_loads_the_file(tmp_path, family):
    export, folder = write_export(tmp_path, family, "gguf_f16")
    names = {}
    exec(VARIANTS["gguf_f16"].load_code.replace("FOLDER", str(folder)), names)
    ids = names["tokenizer"](TEXT, add_special_tokens=False)["input_ids"]
    expected = read_logits(load_model(export.student, CPU, torch.float32), ids)
    assert compare_logits(read_logits(names["model"], ids), expected)[0] < 0.01


def test_a_sentencepiece_tokenizer_is_read_back(tmp_path):
    export, folder = write_export(tmp_path, "gemma3", "gguf", build_gemma_tokenizer())
    assert check_export(export, folder)["distance"] < 0.1
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds.count(gguf.TokenType.BYTE) == 256
    assert kinds[3] == gguf.TokenType.UNKNOWN
    assert kinds[5] == gguf.TokenType.CONTROL


def test_merges_that_llama_cpp_would_order_otherwise_are_refused():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    whole = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    assert find_problem(vocabulary, whole, set()) is None
    assert find_problem(vocabulary, whole[:3], set()) == "no merge of 'a' and 'bc'"
    assert find_problem(vocabulary, whole[:3], {"abc"}) is None
    spaces = vocabulary | {"▁": 262, "▁▁": 263}
    assert find_problem(spaces, whole, {"▁▁"}) == "no merge of '▁' and '▁'"
    parted = [whole[0], whole[2], whole[1], whole[3]]
    assert find_problem(vocabulary, parted, set()) == "the merges of 'abc' do not follow each other"
    del vocabulary["<0x0A>"]
    assert find_problem(vocabulary, whole, set()) == "no token <0x0A>"


def test_a_space_before_the_text_is_refused(tmp_path):
    """As in Llama 2 and the first Mistral models: llama.cpp adds it after each control token, too."""
    tokenizer = build_gemma_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    with pytest.raises(InputError, match="or one like Gemma's, found BPE with .* and the normalizer .*Prepend"):
        add_tokenizer(gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3"), tokenizer, 352)


def build_split_tokenizer(name, ignores_merges, has_unmerged):
    """A byte-level BPE with a pre-tokenizer of llama.cpp; optionally with a token that no merges give."""
    backend = json.loads(build_tokenizer().backend_tokenizer.to_str())
    backend["model"]["ignore_merges"] = ignores_merges
    if has_unmerged:
        backend["model"]["vocab"]["xyzq"] = len(backend["model"]["vocab"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    split = next(pattern for pattern, one in SPLITS.items() if one == name)
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    fast.chat_template = CHATML
    return fast


@pytest.mark.parametrize("name", SPLITS.values())
def test_tokens_without_merges_are_refused_where_llama_cpp_treats_them_otherwise(name):
    for ignores_merges in (False, True):
        assert find_pre_tokenizer(build_split_tokenizer(name, ignores_merges, has_unmerged=False)) == name
    same = name in WHOLE_PIECES
    assert find_pre_tokenizer(build_split_tokenizer(name, same, has_unmerged=True)) == name
    with pytest.raises(InputError, match=f"differently with {name}, found none for 'xyzq'"):
        find_pre_tokenizer(build_split_tokenizer(name, not same, has_unmerged=True))


# ---- llama.cpp ----


class Server:
    """A llama.cpp server of one GGUF file."""

    def __init__(self, path: Path):
        self.log = open(path.with_suffix(".log"), "w+", encoding="utf-8")  # noqa: SIM115
        argv = [LLAMA_CPP_PYTHON, str(ROOT / "tests/helpers/llama_cpp_server.py"), str(path)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def __enter__(self):
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            self.log.seek(0)
            raise AssertionError(self.log.read()[-3000:])
        return self

    def __exit__(self, *_):
        self.process.communicate()
        self.log.close()

    def ask(self, path, **body):
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self.address}/{path}", data, {"Content-Type": "text/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def read_logprobs(self, ids, size):
        """Log-probabilities of the next token, shape (size,); minus infinity for those that the server leaves out."""
        # The server reports nothing where it generates a part of a character, so it has to generate the prompt's first
        # token again. The log-probabilities do not contain this bias.
        settings = {"n_predict": 1, "n_probs": size, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        answer = self.ask("completion", prompt=ids, logit_bias=[[ids[0], 1000]], **settings)
        found = torch.full((size,), -torch.inf)
        for one in answer["completion_probabilities"][0]["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found


with_llama_cpp = pytest.mark.skipif(
    not LLAMA_CPP_PYTHON, reason="LLAMA_CPP_PYTHON is not set; see the module's docstring"
)


@with_llama_cpp
@pytest.mark.parametrize("variant", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same(tmp_path, family, variant):
    export, folder = write_export(tmp_path, family, variant)
    tokenizer = load_tokenizer(export.student)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    # What llama.cpp reads is held against the weights of the file, so that rounding them does not count.
    model = load_model(str(folder), CPU, torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    with Server(folder / "model.gguf") as server:
        assert server.ask("tokenize", content=TEXT, add_special=False)["tokens"] == ids
        for length in (1, 7, 20, len(ids)):
            found = server.read_logprobs(ids[:length], len(expected[0]))
            likely = expected[length - 1] > -12
            assert likely.sum() > 10
            assert (found - expected[length - 1])[likely].abs().max() < FORMATS[variant], length


@with_llama_cpp
@pytest.mark.parametrize("name", ["gemma", *SPLITS.values()])
def test_llama_cpp_splits_texts_alike(tmp_path, name):
    same = name in WHOLE_PIECES
    tokenizer = build_gemma_tokenizer() if name == "gemma" else build_split_tokenizer(name, same, has_unmerged=True)
    export, folder = write_export(tmp_path, "gemma3" if name == "gemma" else "mistral", "gguf", tokenizer)
    tokenizer = load_tokenizer(export.student)
    rng = random.Random(0)
    drawn = ["".join(rng.choices(TEXT + "  \n", k=rng.randrange(40))) for _ in range(100)]
    with Server(folder / "model.gguf") as server:
        for text in TEXTS + drawn:
            settings = {"content": text, "add_special": False, "parse_special": True}
            assert (
                server.ask("tokenize", **settings)["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"]
            )
