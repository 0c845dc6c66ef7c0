"""Shards are read as safetensors reads them, without mapping the file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.teacher.shard_file import DTYPES, ShardFile


@pytest.fixture
def shard(tmp_path):
    torch.manual_seed(0)
    tensors = {
        str(dtype): (torch.randn(7, 3, 2) * 50).to(dtype) if dtype.is_floating_point else torch.arange(7).to(dtype)
        for dtype in DTYPES.values()
    }
    path = tmp_path / "00000.safetensors"
    save_file(tensors | {"empty": torch.empty(7, 0)}, path, {"format": "2"})
    return path


def read_all(file):
    return [file.read_rows(name, 0, 7) for name in file.shapes]


def test_rows_are_those_of_safetensors(shard):
    with ShardFile(shard) as file:
        assert file.metadata == {"format": "2"}
        for name, tensor in load_file(shard).items():
            assert file.shapes[name] == tuple(tensor.shape)
            for start, rows in ((0, 7), (2, 3), (6, 1), (7, 0)):
                found = file.read_rows(name, start, rows)
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor[start : start + rows])
            with pytest.raises(ValueError, match="expected rows 5 to 8"):
                file.read_rows(name, 5, 3)


def test_reading_maps_nothing(shard):
    with ShardFile(shard) as file:
        kept = read_all(file)
        with open("/proc/self/maps") as maps:
            assert str(shard) not in maps.read()
    assert kept


@pytest.mark.parametrize("end", [0, 20, -1])
def test_a_file_that_is_not_whole_is_refused(shard, end):
    shard.write_bytes(shard.read_bytes()[:end])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        ShardFile(shard)


def test_a_file_that_is_cut_off_while_it_is_open_is_an_error(shard):
    with ShardFile(shard) as file:
        shard.write_bytes(shard.read_bytes()[:300])
        with pytest.raises(ValueError, match="expected .* bytes at byte"):
            read_all(file)
