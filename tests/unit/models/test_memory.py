"""Memory estimates against the memory of loaded models; placement on devices; loading."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny import build_model, save_model
from transformers import AutoModelForCausalLM, Gemma4TextConfig, Qwen2Config
from transformers.integrations.accelerate import _get_device_map

from distill.common import control_groups
from distill.common.errors import InputError
from distill.generation.transformers_engine import ModelSource
from distill.models import host_memory, memory
from distill.models import load as models
from distill.models.completions import decoder_and_head
from distill.models.load import choose_attention, load_model, quantization_config
from distill.models.memory import (
    build_skeleton,
    estimate_weights,
    format_bytes,
    free_memory,
    kv_bytes_per_token,
    stored_weights,
    total_memory,
)
from distill.models.placement import align_devices, describe_fit, list_devices, place_model

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16

# From the config.json of Qwen/Qwen2.5-7B-Instruct and Qwen/Qwen2.5-72B-Instruct.
QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
QWEN_72B = Qwen2Config(
    vocab_size=152064,
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def skeleton_72b():
    return build_skeleton(QWEN_72B, BF16)


@pytest.fixture
def gpus(monkeypatch):
    """Make torch report GPUs with the given (free, total) GiB."""

    def pretend(*sizes, reserved=0, integrated=False, capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device: tuple(int(size * GIB) for size in sizes[device.index or 0])
        )
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        properties = SimpleNamespace(is_integrated=int(integrated), total_memory=sizes[0][1] * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.fixture
def not_loaded(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("the weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


def footprint(model):
    """Count the bytes of all tensors of a loaded model, including the state of quantized layers."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            tensors.append(module.weight.SCB)
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        (torch.float32, "none"),
        (BF16, "none"),
        (BF16, "int8"),
        (torch.float32, "int8"),
        (BF16, "nf4"),
        (torch.float32, "nf4"),
    ],
)
def test_the_estimate_is_what_a_loaded_model_takes(dtype, quantization, tied, tokenizer, tmp_path):
    folder = save_model(tmp_path / "model", tokenizer, hidden=64, layers=3, tied=tied)
    model = load_model(folder, CPU, dtype, quantization, is_run=False)
    assert estimate_weights(model.config, dtype, quantization) == pytest.approx(footprint(model), rel=0.001)
    replaced = {"none": 0, "int8": 21, "nf4": 21}[quantization]
    assert sum(type(module).__name__ in ("Linear8bitLt", "Linear4bit") for module in model.modules()) == replaced


def test_the_estimate_does_not_change_the_configuration():
    config = build_model().config
    before = config.to_dict()
    estimate_weights(config, torch.float16, "nf4")
    assert config.to_dict() == before


@pytest.mark.parametrize(("config", "billions"), [(QWEN_7B, 7.62), (QWEN_72B, 72.71)], ids=["7B", "72B"])
def test_known_models_have_their_known_size(config, billions):
    parameters = sum(parameter.numel() for parameter in build_skeleton(config, BF16).parameters())
    assert round(parameters / 1e9, 2) == billions
    assert estimate_weights(config, BF16, "none") == pytest.approx(2 * parameters, rel=1e-5)


@pytest.mark.parametrize(("name", "config"), [("Qwen2.5-7B", QWEN_7B), ("Qwen2.5-72B", QWEN_72B)], ids=["7B", "72B"])
def test_the_documented_sizes_are_computed(name, config):
    sizes = [estimate_weights(config, BF16, quantization) for quantization in ("none", "int8", "nf4")]
    row = " | ".join(map(format_bytes, [*sizes, 1024 * kv_bytes_per_token(config, BF16)]))
    assert f"| {name} | {row} |" in (ROOT / "config/README.md").read_text(encoding="utf-8")


def test_quantized_known_models_by_the_published_bits(skeleton_72b):
    linear = sum(
        parameter.numel()
        for name, parameter in skeleton_72b.named_parameters()
        if name.endswith("proj.weight")  # linear layers of the blocks; the head is not quantized
    )
    rest = sum(parameter.numel() for parameter in skeleton_72b.parameters()) - linear
    # QLoRA, section 3: 4 bits per weight and 0.127 bits of constants.
    assert estimate_weights(QWEN_72B, BF16, "nf4") == pytest.approx(linear * 4.127 / 8 + 2 * rest, rel=1e-4)
    assert estimate_weights(QWEN_72B, BF16, "int8") == pytest.approx(linear + 2 * rest, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("width", [None, 8], ids=["width from hidden", "width given"])
def test_a_token_adds_its_keys_and_values(dtype, width):
    config = build_model().config
    if width:
        config.head_dim = width
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    cache = model(torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True).past_key_values
    taken = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes_per_token(config, dtype) * 5 == taken


def test_free_memory_of_the_machine():
    there = psutil.virtual_memory()
    assert 0 < total_memory(CPU) <= there.total
    assert 0 < free_memory(CPU) <= there.total
    assert free_memory(CPU) == pytest.approx(there.available, rel=0.5)


def test_free_memory_of_a_gpu_includes_unused_reserved_memory(gpus):
    gpus((10, 80), (20, 80), reserved=3 * GIB)
    assert free_memory(CUDA) == 13 * GIB
    assert free_memory(torch.device("cuda", 1)) == 23 * GIB
    assert total_memory(CUDA) == 80 * GIB
    assert list_devices(CUDA) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert list_devices(torch.device("cuda", 1)) == [torch.device("cuda", 1)]
    assert list_devices(CPU) == [CPU]


@pytest.fixture
def spark(gpus, monkeypatch):
    """An integrated GPU of 120 GiB, 10 of them free for CUDA, in a machine of 128 GiB, 100 of them available."""
    machine = SimpleNamespace(available=100 * GIB, total=128 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(host_memory, "read_limits", list)
    gpus((10, 120), integrated=True)
    return machine


def test_an_integrated_gpu_has_the_memory_of_the_machine_but_for_a_reserve(spark, gpus):
    reserve = memory.INTEGRATED_RESERVE
    assert (free_memory(CUDA), total_memory(CUDA)) == (100 * GIB - reserve, 128 * GIB - reserve)
    gpus((10, 120), integrated=False)
    assert (free_memory(CUDA), total_memory(CUDA)) == (10 * GIB, 120 * GIB)


def test_a_control_group_limits_an_integrated_gpu(spark, monkeypatch):
    monkeypatch.setattr(host_memory, "read_limits", lambda: [(40 * GIB, 15 * GIB)])
    reserve = memory.INTEGRATED_RESERVE
    assert (free_memory(CUDA), total_memory(CUDA)) == (25 * GIB - reserve, 40 * GIB - reserve)
    monkeypatch.setattr(host_memory, "read_limits", lambda: [(40 * GIB, 39 * GIB)])
    assert free_memory(CUDA) == 0


def test_torch_may_not_allocate_all_of_an_integrated_gpu(spark, gpus, monkeypatch):
    """Allocations beyond the machine's memory would hang it; those beyond a fraction are an error."""
    fractions = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *found: fractions.append(found))
    monkeypatch.setattr(memory, "_limited", set())
    first = torch.device("cuda", 0)
    for _ in range(2):  # the second call would count what the first model has taken
        memory.limit_integrated(first)
    assert fractions == [((100 * GIB - memory.INTEGRATED_RESERVE) / (120 * GIB), first)]
    monkeypatch.setattr(memory, "_limited", set())
    gpus((10, 120), integrated=False)
    memory.limit_integrated(first)
    assert len(fractions) == 1


def write_groups(folder, groups):
    """Control groups: limit, usage and inactive page cache in bytes by path; names as in version 1 or 2."""
    for path, (limit, usage, cache) in groups.items():
        own = folder / path
        own.mkdir(parents=True, exist_ok=True)
        is_first = path.startswith("memory")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_first else ("memory.max", "memory.current")
        (own / names[0]).write_text(f"{limit}\n")
        (own / names[1]).write_text(f"{usage}\n")
        key = "total_inactive_file" if is_first else "inactive_file"
        (own / "memory.stat").write_text(f"anon 1\n{key} {cache}\nslab 3\n")


@pytest.mark.parametrize(
    ("own", "groups", "limits"),
    [
        (
            "0::/slurm/job_7/step",
            {"slurm/job_7/step": ("max", 5, 0), "slurm/job_7": (60, 30, 10), "slurm": (90, 85, 15)},
            [(60, 20), (90, 70)],
        ),
        ("0::/", {".": (50, 20, 5)}, [(50, 15)]),  # a container with its own namespace
        ("0::/not/mounted", {".": (50, 20, 5)}, [(50, 15)]),
        (
            "4:memory:/user/me\n3:cpu:/\n0::/",
            {"memory/user/me": (40, 30, 8), "memory": (2**63 - 4096, 9, 0)},
            [(40, 22)],
        ),
        ("3:cpu:/", {".": (50, 20, 5)}, []),
    ],
    ids=["nested", "container", "path of the host", "version 1", "no memory controller"],
)
def test_the_limits_of_control_groups(monkeypatch, tmp_path, own, groups, limits):
    write_groups(tmp_path, groups)
    (tmp_path / "own").write_text(own + "\n")
    monkeypatch.setattr(control_groups, "MOUNTED", tmp_path)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2000))
    assert host_memory.read_limits() == limits
    left = [limit - usage for limit, usage in limits]
    assert free_memory(CPU) == min([1000, *left])
    assert total_memory(CPU) == min([2000, *(limit for limit, _ in limits)])


def test_a_machine_without_control_groups_has_no_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "missing")
    assert host_memory.read_limits() == []


def test_reserved_memory_is_reported_beside_that_of_tensors(gpus, monkeypatch):
    gpus((10, 80), (20, 80))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: (index + 1) * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: (index + 2) * GIB)
    assert (memory.memory_mb(CUDA), memory.reserved_mb(CUDA)) == (3 * 1024, 5 * 1024)
    assert memory.reserved_mb(CPU) == memory.memory_mb(CPU) > 0


def test_the_line_says_what_is_needed_and_what_is_free():
    free = {torch.device("cuda", 0): int(121.3 * GIB), torch.device("cuda", 1): 50 * GIB}
    token = kv_bytes_per_token(QWEN_72B, BF16)
    assert describe_fit("Qwen/Qwen2.5-72B-Instruct", int(38.9 * GIB), "nf4", token, free) == (
        "Qwen/Qwen2.5-72B-Instruct: about 38.9 GiB of weights (nf4), 320.0 KiB of KV cache per token "
        "(320.0 MiB for 1024 tokens of prompt and answer), 121.3 GiB free on cuda:0, 50.0 GiB free on cuda:1"
    )


def test_a_model_that_fits_goes_to_one_gpu(gpus, skeleton_72b, caplog):
    caplog.set_level(logging.INFO)
    gpus((130, 140), (130, 140))
    assert place_model("t", skeleton_72b, CUDA, BF16, "nf4") == {"device_map": {"": torch.device("cuda", 0)}}
    assert "nf4), 320.0 KiB" in caplog.text
    assert caplog.text.endswith("130.0 GiB free on cuda:0\n")  # the memory of other GPUs is not queried
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_model_too_big_for_one_gpu_is_spread_and_leaves_room(gpus, skeleton_72b, caplog):
    caplog.set_level(logging.INFO)
    gpus((79, 80), (79, 80))
    place = place_model("t", skeleton_72b, CUDA, BF16, "none")
    assert place["device_map"] == "auto"
    assert place["max_memory"][0] == place["max_memory"][1] == int(0.9 * 79 * GIB)
    spread = _get_device_map(skeleton_72b, "auto", place["max_memory"], None)
    assert set(spread.values()) == {0, 1}
    assert spread["model.embed_tokens"] == 0
    assert "79.0 GiB free on cuda:0, 79.0 GiB free on cuda:1" in caplog.text


def test_quantized_weights_are_spread_once_a_tenth_is_taken_off(gpus, skeleton_72b):
    gpus((30, 32), (30, 32))
    place = place_model("t", skeleton_72b, CUDA, BF16, "nf4")
    assert place["max_memory"][0] == place["max_memory"][1] == 30 * GIB


def test_a_named_gpu_is_the_only_one(gpus, skeleton_72b):
    gpus((79, 80), (79, 80))
    with pytest.raises(InputError, match="memory of cuda:1, which is 80.0 GiB"):
        place_model("t", skeleton_72b, torch.device("cuda", 1), BF16, "none")


def test_a_model_that_exceeds_all_memory_is_rejected_with_advice(gpus, skeleton_72b):
    gpus((20, 24), (20, 24))
    with pytest.raises(InputError) as caught:
        place_model("big", skeleton_72b, CUDA, BF16, "none")
    text = str(caught.value)
    assert "big: expected weights that fit the memory of cuda:0, cuda:1, which is 48.0 GiB" in text
    assert "found about 135.4 GiB" in text
    for quantization in ("int8", "nf4"):
        size = estimate_weights(QWEN_72B, BF16, quantization) / GIB
        assert f"`quantization: {quantization}` needs about {size:.1f} GiB" in text
    assert "engine: openai" in text


def test_advice_names_only_what_is_smaller(gpus, skeleton_72b):
    gpus((20, 24))
    with pytest.raises(InputError) as caught:
        place_model("big", skeleton_72b, CUDA, BF16, "nf4")
    assert "`quantization:" not in str(caught.value)
    assert "engine: openai" in str(caught.value)


def test_a_model_that_exceeds_only_free_memory_gives_a_warning(gpus, skeleton_72b, caplog):
    gpus((20, 80))
    assert place_model("big", skeleton_72b, CUDA, BF16, "nf4") == {"device_map": {"": torch.device("cuda", 0)}}
    assert "big: only 20.0 GiB is free on cuda:0" in caplog.text


def test_the_memory_of_the_machine_limits_models_on_a_cpu(monkeypatch, tokenizer, tmp_path, not_loaded):
    folder = save_model(tmp_path / "model", tokenizer)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2000, total=5000))
    with pytest.raises(InputError, match="memory of cpu"):
        ModelSource(folder, device="cpu").load()


def test_memory_is_logged_before_loading(tokenizer, tmp_path, caplog, monkeypatch):
    folder = save_model(tmp_path / "model", tokenizer)
    caplog.set_level(logging.INFO)
    load, said = AutoModelForCausalLM.from_pretrained, []

    def spy(*args, **kwargs):
        said.append((caplog.text, kwargs))
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    size = footprint(ModelSource(folder, device="cpu").load()) / 2**10
    load_model(folder, CPU, torch.float32, trainable=True)
    (text, inference), (_, training) = said
    assert f"{folder}: about {size:.1f} KiB of weights (bfloat16)" in text
    assert "free on cpu" in text
    assert f"{folder}: attention implementation sdpa" in text
    assert inference["device_map"] == {"": CPU}
    assert training["device_map"] is None


def test_weights_quantized_already_are_measured_by_their_index(gpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = build_model().config
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    skeleton = build_skeleton(config, torch.float16)
    gpus((50, 80))
    assert stored_weights(str(tmp_path)) is None
    placed = place_model(str(tmp_path), skeleton, CUDA, torch.float16, "none")
    assert placed == {"device_map": {"": torch.device("cuda", 0)}}
    assert "weights of unknown size (gptq)" in caplog.text
    index = {"metadata": {"total_size": 41 * GIB}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    place_model(str(tmp_path), skeleton, CUDA, torch.float16, "none")
    assert "about 41.0 GiB of weights (gptq)" in caplog.text
    gpus((30, 40))
    with pytest.raises(InputError, match="41.0 GiB; a teacher can also run on a server"):
        place_model(str(tmp_path), skeleton, CUDA, torch.float16, "none")


def test_parts_of_a_spread_model_return_outputs_on_the_input_device(tokenizer, tmp_path, caplog):
    whole = build_model()
    whole.save_pretrained(tmp_path / "model")
    names = ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    place = {name: "disk" if name in ("model.layers.1", "model.norm") else "cpu" for name in names}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=place, offload_folder=tmp_path / "offload"
    )
    align_devices(model)
    assert "which is slow" in caplog.text
    decoder, head = decoder_and_head(model)
    assert all(part._hf_hook.io_same_device for part in (decoder, head))
    assert model.device == CPU
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        output = decoder(input_ids=ids, use_cache=True)
        assert torch.equal(head(output.last_hidden_state), whole(ids).logits)
    assert output.past_key_values.get_seq_length() == 3


def test_generation_uses_sdpa(gpus, monkeypatch):
    skeleton = build_skeleton(QWEN_7B, BF16)
    gpus((80, 80))
    for version in (2, 3):
        monkeypatch.setattr(models, f"is_flash_attn_{version}_available", lambda: True)
    assert choose_attention(skeleton, CUDA, BF16, for_generation=True) == "sdpa"
    skeleton._supports_sdpa = False
    assert choose_attention(skeleton, CUDA, BF16, for_generation=True) == "eager"


@pytest.mark.parametrize(
    ("installed", "device", "dtype", "capability", "chosen"),
    [
        ((2, 3), CUDA, BF16, (9, 0), "flash_attention_3"),
        ((2,), CUDA, torch.float16, (8, 0), "flash_attention_2"),
        ((3,), CUDA, BF16, (8, 6), "flash_attention_3"),
        ((), CUDA, BF16, (9, 0), "sdpa"),
        ((2, 3), CUDA, BF16, (7, 5), "sdpa"),
        ((2, 3), CUDA, torch.float32, (9, 0), "sdpa"),
        ((2, 3), CPU, BF16, (9, 0), "sdpa"),
    ],
)
def test_training_uses_flash_attention_if_available(gpus, monkeypatch, installed, device, dtype, capability, chosen):
    skeleton = build_skeleton(QWEN_7B, BF16)
    gpus((80, 80), capability=capability)
    for version in (2, 3):
        monkeypatch.setattr(models, f"is_flash_attn_{version}_available", lambda version=version: version in installed)
    assert choose_attention(skeleton, device, dtype, for_generation=False) == chosen
    skeleton._supports_flash_attn = False
    assert choose_attention(skeleton, device, dtype, for_generation=False) == "sdpa"


def test_quantization_settings():
    nf4 = quantization_config("nf4", BF16)
    assert nf4.load_in_4bit
    assert (nf4.bnb_4bit_quant_type, nf4.bnb_4bit_use_double_quant, nf4.bnb_4bit_compute_dtype) == ("nf4", True, BF16)
    assert quantization_config("int8", BF16).load_in_8bit
    assert quantization_config("none", BF16) is None


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantization_without_bitsandbytes(quantization, tokenizer, tmp_path, monkeypatch, not_loaded):
    folder = save_model(tmp_path / "model", tokenizer, hidden=64)
    monkeypatch.setattr(models, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match=f"{quantization} needs the package bitsandbytes"):
        load_model(folder, CPU, BF16, quantization)


def test_quantized_weights_are_not_quantized_again(tokenizer, tmp_path, not_loaded):
    folder = save_model(tmp_path / "model", tokenizer, hidden=64)
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(InputError, match=r"quantization: expected none.*already \(awq\), found nf4"):
        load_model(folder, CPU, BF16, "nf4")


@pytest.mark.parametrize("hidden", [16, 96])
def test_widths_that_nf4_does_not_support_on_a_cpu(hidden, tokenizer, tmp_path, not_loaded):
    folder = save_model(tmp_path / "model", tokenizer, hidden=hidden)
    with pytest.raises(InputError, match=f"nf4 on a CPU needs .* found {hidden} and .* in model.layers.0"):
        load_model(folder, CPU, BF16, "nf4")


def test_int8_does_not_fill_the_log(tokenizer, tmp_path, caplog):
    folder = save_model(tmp_path / "model", tokenizer)
    model = load_model(folder, CPU, BF16, "int8")
    caplog.clear()
    model(torch.tensor([[1, 2, 3]]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "not a valid JSON"),
        ("[]", "Unrecognized model"),
        ('{"model_type": "nope"}', "nope"),
        ('{"model_type": "qwen2", "hidden_size": "x"}', "hidden_size"),
    ],
)
def test_a_broken_configuration(text, found, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"(?s){tmp_path}: .*config.json: .*{found}"):
        ModelSource(str(tmp_path)).config()


def test_a_missing_configuration(tmp_path):
    with pytest.raises(InputError, match="found no config.json"):
        ModelSource(str(tmp_path)).config()
    with pytest.raises(InputError, match="found no such folder"):
        ModelSource(str(tmp_path / "missing")).config()


@pytest.mark.parametrize("text", ['{"model_type": "t5"}', '{"model_type": "qwen2", "num_attention_heads": 0}'])
def test_a_configuration_of_no_causal_model(text, tmp_path, not_loaded):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="describes no causal language model"):
        ModelSource(str(tmp_path), device="cpu").load()


def test_the_configuration_of_a_model(tokenizer, tmp_path):
    assert ModelSource(save_model(tmp_path / "model", tokenizer)).config().max_position_embeddings == 512


def test_layers_with_other_heads_have_their_own_kv_cache():
    """Gemma 4 has fewer and wider heads in the layers with full attention."""
    config = Gemma4TextConfig(
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_global_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        attention_k_eq_v=True,
    )
    assert kv_bytes_per_token(config, BF16) == 2 * 2 * (4 * 16 + 2 * 32) * 2
