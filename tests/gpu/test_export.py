"""Exports of a student on the GPU: written, loaded in a fresh process, and compared with the student."""

import json

import pytest
import torch
from tiny import build_model, build_tokenizer

from distill.common.variants import VARIANTS
from distill.export.export_model import Export, compare_logits, export_student, read_logits
from distill.models.load import load_model


@pytest.mark.parametrize("variant", ["full", "nf4", "int8"])
def test_an_exported_student_passes_its_check(tmp_path, device, variant):
    student = tmp_path / "student"
    build_model(hidden=64, scale=4.0).save_pretrained(student)
    build_tokenizer().save_pretrained(student)
    dtype = "float32" if device == "cpu" else "bfloat16"
    export_student(Export(str(student), variant, dtype, device), tmp_path / "out")
    settings = json.loads((tmp_path / "out/config.json").read_text())
    assert ("quantization_config" in settings) == (variant != "full")
    place = torch.device(device)
    loaded = load_model(str(tmp_path / "out"), place, getattr(torch, dtype))
    assert {weight.device.type for weight in loaded.parameters()} == {device}
    exact = load_model(str(student), torch.device("cpu"), torch.float32)
    ids = list(range(10, 60))
    distance, _ = compare_logits(read_logits(loaded, ids), read_logits(exact, ids))
    assert distance < (VARIANTS[variant].largest_distance or 0.03)
