"""Variants that LLM Compressor quantizes: weights against plain rounding formulas, calibration, and clear errors.

The tests that run LLM Compressor need `make setup-quantize`, or QUANTIZER_PYTHON with the Python that has it.
"""

import json
import sys

import pytest
import torch
from quantizer import find_python
from safetensors.torch import load_file
from tiny import build_model, build_tokenizer
from training_runs import write_splits

from distill.common.errors import InputError
from distill.export import compress as module
from distill.export.compress import compress, find_quantizer
from distill.export.compress_program import choose_group_size
from distill.export.export_model import Export, encode_samples, export_student
from distill.models.chat import ChatTemplate
from distill.models.load import load_model, load_tokenizer

PYTHON = find_python()
needs_compressor = pytest.mark.skipif(PYTHON is None, reason="LLM Compressor is not installed (make setup-quantize)")
CPU = torch.device("cpu")


@pytest.fixture
def student(tmp_path):
    """A student with layers of 96 and 192 inputs."""
    model = build_model(hidden=96)
    model.save_pretrained(tmp_path / "student")
    build_tokenizer().save_pretrained(tmp_path / "student")
    return str(tmp_path / "student")


@pytest.fixture
def train(tmp_path, records):
    """The train split of a category."""
    write_splits(tmp_path / "data", records, records[:2])
    return tmp_path / "data/train.jsonl"


def make_export(student, variant, train, **changes):
    settings = {"data": (train,), "calibration_records": 4, "quantizer": PYTHON} | changes
    return Export(student, variant, "float32", "cpu", **settings)


@needs_compressor
def test_gptq_weights_are_on_the_grid_of_their_groups(student, train, tmp_path):
    out = tmp_path / "gptq"
    export_student(make_export(student, "gptq", train), out)  # it checks the logits in a fresh process, too
    loaded = load_model(str(out), CPU, torch.float32)
    stored = load_file(out / "model.safetensors")
    original = load_model(student, CPU, torch.float32)
    name = "model.layers.0.mlp.down_proj"
    scales = stored[f"{name}.weight_scale"].double()
    found, before = (model.get_submodule(name).weight.double() for model in (loaded, original))
    assert scales.shape == (96, 192 // 32)  # 32 is the largest group size that divides 96 and 192
    steps = found.reshape(96, 6, 32) / scales[:, :, None]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.round().unique().numel() > 4
    assert steps.min() >= -8.01
    assert steps.max() <= 7.01
    assert 0 < (found - before).norm() < 0.3 * before.norm()
    assert torch.equal(loaded.lm_head.weight, original.lm_head.weight)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert (out / "tokenizer_config.json").is_file()


@needs_compressor
def test_fp8_weights_are_rounded_to_8_bit_floats_by_row(student, train, tmp_path):
    out = tmp_path / "fp8"
    export_student(make_export(student, "fp8", train), out)
    stored, original = load_file(out / "model.safetensors"), load_model(student, CPU, torch.float32)
    name = "model.layers.1.self_attn.q_proj"
    weight = original.get_submodule(name).weight.double()
    scale = weight.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    torch.testing.assert_close(stored[f"{name}.weight_scale"].double(), scale, rtol=1e-6, atol=0)
    found = stored[f"{name}.weight"]
    assert found.dtype == torch.float8_e4m3fn
    expected = (weight / scale).float().to(torch.float8_e4m3fn)
    assert (found.float() == expected.float()).float().mean() > 0.99  # a scale in float32 may round one the other way


@needs_compressor
def test_layers_that_no_group_divides_are_refused(train, tmp_path):
    model = build_model(hidden=48)
    model.save_pretrained(tmp_path / "odd")
    build_tokenizer().save_pretrained(tmp_path / "odd")
    with pytest.raises(InputError, match=r"variant gptq: .*expected layers of 32·n inputs, found 48 in model"):
        export_student(make_export(str(tmp_path / "odd"), "gptq", train), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("widths", "size"), [((256, 128), 128), ((64, 128), 64), ((96, 64), 32)])
def test_the_largest_group_size_that_divides_all_widths(widths, size):
    assert choose_group_size(dict(enumerate(widths))) == size


def test_calibration_reads_whole_conversations_in_the_order_of_a_hash(student, train, records):
    samples = encode_samples(make_export(student, "gptq", train))
    again = encode_samples(make_export(student, "gptq", train, calibration_records=2))
    assert len(samples) == 4
    assert again == samples[:2]
    chat = ChatTemplate(load_tokenizer(student))
    whole = [chat.tokenizer.decode(sample) for sample in samples]
    texts = [record["messages"][-1]["content"] for record in records]
    assert all(any(text in sample for text in texts) for sample in whole)


def test_without_records_there_is_nothing_to_calibrate_on(student, train):
    with pytest.raises(InputError, match="variant gptq: expected records of the train split, found none in no file"):
        encode_samples(make_export(student, "gptq", train, data=()))


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "OWN_ENVIRONMENT", tmp_path / "none")
    with pytest.raises(
        InputError, match=r"expected LLM Compressor in \.venv-quantize, found none; run `make setup-quant"
    ):
        find_quantizer(None)
    with pytest.raises(
        InputError, match=r"export\.quantizer: expected a Python with llmcompressor, found no program at"
    ):
        find_quantizer("nowhere/python")


def test_a_program_that_fails_is_an_error_with_its_last_line(student, tmp_path):
    """This environment has no LLM Compressor."""
    with pytest.raises(
        InputError, match=r"variant fp8: LLM Compressor failed \(1\): ModuleNotFoundError: .*llmcompressor"
    ):
        compress(student, "fp8", "float32", [], sys.executable, tmp_path / "out")
