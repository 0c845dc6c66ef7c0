"""Students with rounded weights as folders of compressed-tensors, which transformers loads with equal logits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build_model, build_tokenizer, save_model
from training_runs import train_student, weights
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES
from distill.common.variants import VARIANTS
from distill.export import compressed_weights
from distill.export.export_model import SAME_LOGITS, Export, check_export, export_student, write_variant
from distill.models import weight_rounding
from distill.models.load import load_model
from distill.models.scale_file import SCALES_FILE
from distill.models.weight_rounding import find_rounded_layers, make_rounding

IDS = torch.arange(3, 40)[None]
PACKAGES = {"torchao": weight_rounding, "compressed_tensors": compressed_weights}
needs_packages = pytest.mark.skipif(
    any(module.find_spec(name) is None for name, module in PACKAGES.items()),
    reason="torchao or compressed-tensors is not installed (requirements-extra.txt)",
)


def save_student(folder, dtype=torch.bfloat16, **settings):
    build_model(**{"hidden": 32, "tied": True} | settings).to(dtype).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def write_export(student, scheme, folder, dtype="bfloat16"):
    folder.mkdir()
    export = Export(student, SCHEMES[scheme].variant, dtype, "cpu")
    write_variant(export, folder)
    return export


@needs_packages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_plain_rounding_loads_with_the_rounded_weights(tmp_path, name, dtype):
    student = save_student(tmp_path / "student", dtype)
    export = write_export(student, name, tmp_path / "out", str(dtype).removeprefix("torch."))
    expected = AutoModelForCausalLM.from_pretrained(student, dtype=dtype)
    layers = find_rounded_layers(expected, name)
    rounding = make_rounding(name, dtype, layers)
    for layer in layers.values():
        layer.weight.data = rounding.round(layer.weight).values.to(dtype)
    found = load_model(str(tmp_path / "out"), torch.device("cpu"), dtype)
    assert all(weight.dtype == dtype for weight in found.parameters())
    for key, weight in expected.state_dict().items():
        assert found.state_dict()[key].equal(weight), key
    assert found(IDS).logits.equal(expected.eval()(IDS).logits)
    packed = load_file(tmp_path / "out/model.safetensors")
    assert not {f"{layer}.weight" for layer in layers} & set(packed)
    assert len([key for key in packed if key.endswith(".weight_packed")]) == len(layers) == 14
    stored = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert (stored["quant_method"], stored["format"], stored["ignore"]) == (
        "compressed-tensors",
        SCHEMES[name].format,
        ["lm_head"],
    )
    facts = check_export(export, tmp_path / "out")
    assert 0 < facts["distance"] <= VARIANTS[export.variant].largest_distance


@needs_packages
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_student_trained_with_a_scheme_keeps_its_values(
    options, models, tmp_path, tokenizer, records, name, precision
):
    models["student"] = save_model(tmp_path / "wide", tokenizer, vocabulary=336, hidden=32, seed=2)
    run = options(quantization_aware=name, precision=precision)
    train_student(run, records, [])
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    export = write_export(str(run.out), name, tmp_path / "packed", dtype)
    found = load_model(str(tmp_path / "packed"), torch.device("cpu"), getattr(torch, dtype)).state_dict()
    for key, weight in weights(run).items():
        assert found[key].equal(weight), key
    facts = check_export(export, tmp_path / "packed")
    assert facts["distance"] <= SAME_LOGITS
    # Without its scales, the student would be rounded once more.
    shutil.copytree(run.out, tmp_path / "copy")
    shutil.rmtree((tmp_path / "copy" / SCALES_FILE).parent)
    again = write_export(str(tmp_path / "copy"), name, tmp_path / "again", dtype)
    if name != "nvfp4":  # whose scales are found again
        assert check_export(again, tmp_path / "again")["distance"] > SAME_LOGITS


@needs_packages
def test_weights_that_are_not_those_of_the_scales_are_refused(options, models, tmp_path, tokenizer, records):
    models["student"] = save_model(tmp_path / "wide", tokenizer, vocabulary=336, hidden=32, seed=2)
    run = options(quantization_aware="int4")
    train_student(run, records, [])
    changed = weights(run)
    name = "model.layers.1.mlp.up_proj.weight"
    changed[name] = changed[name] * 1.01
    save_file(changed, run.out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"mlp.up_proj: expected the weights of a training with int4, found weights"):
        write_export(str(run.out), "int4", tmp_path / "packed")


@needs_packages
def test_the_export_appears_only_after_its_check(tmp_path):
    student = save_student(tmp_path / "student")
    export = Export(student, "w4a16", "bfloat16", "cpu")
    export_student(export, tmp_path / "out/w4a16")
    size = (tmp_path / "out/w4a16/model.safetensors").stat().st_size
    assert size < (tmp_path / "student/model.safetensors").stat().st_size
    settings = CompressedTensorsConfig(dequantize=True)  # as the model card says
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/w4a16", dtype="auto", quantization_config=settings)
    assert model.dtype == torch.bfloat16


@needs_packages
def test_a_model_that_does_not_fit_is_refused(tmp_path):
    student = save_student(tmp_path / "student", hidden=16)
    with pytest.raises(InputError, match=r"student: int4: expected layers with 32·n inputs, found 16"):
        write_export(student, "int4", tmp_path / "out")


@pytest.mark.parametrize(("package", "module"), PACKAGES.items())
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, module):
    for other in PACKAGES.values():
        monkeypatch.setattr(other, "find_spec", lambda name: None if name == package else "found")
    student = save_student(tmp_path / "student")
    with pytest.raises(InputError, match=rf"pip install {package.replace('_', '-')}"):
        write_export(student, "int4", tmp_path / "out")
