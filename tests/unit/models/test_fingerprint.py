"""Fingerprints: which files they include, and which changes of sampled weights they detect."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_model

from distill.common.errors import InputError
from distill.models import fingerprint as model_files
from distill.models.fingerprint import (
    find_commit,
    fingerprint_files,
    fingerprint_folder,
    fingerprint_model,
    list_model_files,
)

DECIDING = [
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "adapter_model.bin",
    "pytorch_model.bin",
]
BESIDE = ["training_args.bin", "trainer_state.json", "README.md", "training_log.jsonl", "optimizer.pt", "scheduler.bin"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(path, text):
    """Write the text; in a safetensors file, as a tensor."""
    data = text.encode()
    if path.suffix == ".safetensors":
        header = json.dumps({"t": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
        data = len(header).to_bytes(8, "little") + header + data
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer_of_before").mkdir()
    for name in DECIDING + BESIDE:
        write(tmp_path / name, "one")
    return tmp_path


@pytest.fixture
def large(tmp_path):
    """A folder with a tokenizer and 9 MB of weights, which are sampled."""
    torch.manual_seed(0)
    tensors = {"a": torch.randn(1000, 1000), "b": torch.randn(1200, 1000), "norm": torch.randn(7)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert (tmp_path / "model.safetensors").stat().st_size > model_files.READ_WHOLE
    return tmp_path


@pytest.mark.parametrize("name", DECIDING)
def test_deciding_files_count(folder, name):
    before = fingerprint_files(folder)
    assert folder / name in list_model_files(folder)
    write(folder / name, "two")
    assert fingerprint_files(folder) != before


@pytest.mark.parametrize("name", BESIDE)
def test_what_a_training_leaves_does_not(folder, name):
    before = fingerprint_files(folder)
    (folder / name).write_text("other")
    assert fingerprint_files(folder) == before


@pytest.mark.parametrize(
    ("name", "place"),
    [("a", (0, 0)), ("a", (-1, -1)), ("a", (500, 0)), ("b", (0, 3)), ("b", (-1, 990)), ("norm", (4,))],
    ids=str,
)
def test_a_weight_in_a_sampled_place_counts(large, name, place):
    before = fingerprint_files(large)
    tensors = load_file(large / "model.safetensors")
    tensors[name][place] += 1e-3
    save_file(tensors, large / "model.safetensors")
    assert fingerprint_files(large) != before


@pytest.mark.parametrize("name", ["a", "b", "norm"])
def test_a_change_to_a_tenth_of_a_tensor_counts(large, name):
    before = fingerprint_files(large)
    tensors = load_file(large / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors[name] += 1e-3 * (torch.rand(tensors[name].shape, generator=generator) < (1 if name == "norm" else 0.1))
    save_file(tensors, large / "model.safetensors")
    assert fingerprint_files(large) != before


def test_header_size_and_tokenizer_count(large):
    found = [fingerprint_files(large)]
    tensors = load_file(large / "model.safetensors")
    save_file({"c" if name == "a" else name: tensor for name, tensor in tensors.items()}, large / "model.safetensors")
    found.append(fingerprint_files(large))
    save_file(tensors | {"b": tensors["b"][:-1].clone()}, large / "model.safetensors")
    found.append(fingerprint_files(large))
    (large / "tokenizer.json").write_text("[]")
    found.append(fingerprint_files(large))
    assert len(set(found)) == 4


def test_a_tensor_of_a_large_torch_file_counts_wherever_it_changed(tmp_path):
    """The directory at the end of the archive has a checksum of each tensor."""
    tensors = {"a": torch.randn(1000, 1000), "b": torch.randn(500, 1000)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert (tmp_path / "pytorch_model.bin").stat().st_size > 2 * model_files.READ_WHOLE
    before = fingerprint_files(tmp_path)
    tensors["a"][123, 456] += 1
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert fingerprint_files(tmp_path) != before


def test_a_large_file_without_directory_is_sampled_all_over(tmp_path):
    data = np.random.default_rng(0).integers(256, size=4 * model_files.READ_WHOLE, dtype=np.uint8)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data.tobytes())
    before = fingerprint_files(tmp_path)
    for part in range(0, len(data), len(data) // 8):
        changed = data.copy()
        changed[part : part + 8192] ^= 1
        path.write_bytes(changed.tobytes())
        assert fingerprint_files(tmp_path) != before


def test_place_name_and_time_do_not_count(large, tmp_path_factory):
    before = fingerprint_files(large)
    copy = tmp_path_factory.mktemp("elsewhere") / "renamed"
    shutil.copytree(large, copy, copy_function=shutil.copyfile)
    assert fingerprint_files(copy) == before
    assert fingerprint_files(str(copy)) == before


@pytest.mark.parametrize("kept", [0, 3, 7, 8, 100, -1, -5_000_000])
def test_a_cut_off_file_is_named(large, kept):
    path = large / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors: expected .*found"):
        fingerprint_files(large)


@pytest.mark.parametrize(
    "header",
    [b"version https://git-lfs.github.com/spec/v1", b"{}" + b"x" * 40, b'{"a": 1}', b"[1, 2]", b'{"a": {"b": 0}}'],
)
@pytest.mark.parametrize("has_length", [True, False])
def test_what_is_no_safetensors_file_is_named(tmp_path, header, has_length):
    length = len(header).to_bytes(8, "little") if has_length else b""
    (tmp_path / "model.safetensors").write_bytes(length + header)
    with pytest.raises(InputError, match=r"model\.safetensors: expected a safetensors file"):
        fingerprint_files(tmp_path)


def test_of_a_model_of_145_gb_little_is_read(tmp_path, monkeypatch):
    """The sparse files have as many tensors as a model with 80 layers."""
    for number in range(37):
        step = 3_900_000_000 // 26
        tensors = {
            f"layers.{number}.{i}": {"dtype": "U8", "shape": [step], "data_offsets": [i * step, (i + 1) * step]}
            for i in range(26)
        }
        header = json.dumps(tensors).encode()
        with open(tmp_path / f"model-{number:05}.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 26 * step)
    pread, counts = os.pread, []
    monkeypatch.setattr(os, "pread", lambda file, count, offset: counts.append(count) or pread(file, count, offset))
    before = fingerprint_files(tmp_path)
    assert sum(counts) < 1_000_000
    assert len(counts) < 4000
    with open(tmp_path / "model-00036.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint_files(tmp_path) != before


def test_a_folder_is_read_once_and_a_broken_one_stops_nobody(large, tmp_path, monkeypatch):
    first = fingerprint_folder(str(large))
    assert first == fingerprint_files(large)
    monkeypatch.setattr(model_files, "fingerprint_files", lambda folder: pytest.fail("read again"))
    assert fingerprint_folder(str(large)) == first
    monkeypatch.undo()
    assert fingerprint_folder("owner/name") == fingerprint_folder(str(tmp_path / "absent")) == ""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"short")
    assert fingerprint_folder(str(broken)) == "unreadable"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hugging Face hub with one model; the hub itself is offline."""
    import huggingface_hub.constants as constants

    snapshot = tmp_path / "hub/models--owner--name/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub/models--owner--name/refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("hub")
def test_a_hub_model_is_known_by_its_commit():
    assert find_commit("owner/name") == COMMIT
    assert fingerprint_model("owner/name") == fingerprint_model("owner/name")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["owner/other", "no such/na me"])
def test_a_hub_model_that_cannot_be_had_is_named(name):
    with pytest.raises(InputError, match=f"{name}: expected a local folder, or a Hugging Face model"):
        fingerprint_model(name)


def test_the_commit_is_the_one_that_transformers_loads(tmp_path, tokenizer):
    """It runs in a new process, since both libraries read the environment when they are imported."""
    folder = tmp_path / "models--owner--name/snapshots" / COMMIT
    save_model(folder, tokenizer)
    (tmp_path / "models--owner--name/refs").mkdir()
    (tmp_path / "models--owner--name/refs/main").write_text(COMMIT)
    code = (
        "import sys; from distill.models.fingerprint import find_commit; commit = find_commit('owner/name');"
        "assert 'torch' not in sys.modules; from transformers.utils import cached_file;"
        "print(commit, cached_file('owner/name', 'model.safetensors').split('/')[-2])"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [COMMIT, COMMIT], done.stderr


def test_an_adapter_counts(large, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        fingerprint_model(str(large), str(adapter))
    (adapter / "adapter_config.json").write_text('{"r": 2}')
    found = {fingerprint_model(str(large)), fingerprint_model(str(large), str(adapter))}
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    assert len(found | {fingerprint_model(str(large), str(adapter))}) == 3
