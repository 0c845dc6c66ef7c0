"""A signal's data on another disk: linked, moved there, and kept apart from those of other working directories."""

import os
from pathlib import Path

import pytest

from distill.common import disk
from distill.common.errors import InputError
from distill.teacher.signal_store import open_data


@pytest.fixture
def out(tmp_path):
    """A signal with a shard in its own folder."""
    data = open_data(tmp_path / "run/signal", None)
    (data / "abc").mkdir()
    (data / "abc/00000.safetensors").write_text("shard")
    return tmp_path / "run/signal"


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_data_are_moved_to_a_store_and_on_to_another(out, tmp_path):
    for store in (tmp_path / "disk/one", tmp_path / "disk/two"):
        data = open_data(out, store)
        assert data == out / "data"
        assert data.resolve() == store / "data"
        assert (data / "abc/00000.safetensors").read_text() == "shard"
        assert open_data(out, store) == data
        assert open_data(out, None).resolve() == store / "data"
    assert list_files(tmp_path / "disk") == ["one/owner.txt", "two/data/abc/00000.safetensors", "two/owner.txt"]


def test_a_relative_store_moves_with_the_working_directory(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "run")
    open_data(Path("signal"), Path("large/banks"))
    os.rename(tmp_path / "run", tmp_path / "renamed")
    monkeypatch.chdir(tmp_path / "renamed")
    data = open_data(Path("signal"), Path("large/banks"))
    assert (data / "abc/00000.safetensors").read_text() == "shard"


def test_a_move_that_was_interrupted_is_finished(out, tmp_path, monkeypatch):
    (out / "data/abc/00001.safetensors").write_text("second")
    replace, calls = os.replace, []

    def stop(source, target):
        if calls:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            open_data(out, tmp_path / "disk")
    assert list_files(out) == ["data/abc/00001.safetensors"]
    open_data(out, tmp_path / "disk")
    assert (out / "data/abc/00000.safetensors").read_text() == "shard"
    assert (out / "data/abc/00001.safetensors").read_text() == "second"


def test_a_store_of_another_working_directory_is_refused(out, tmp_path):
    open_data(out, tmp_path / "disk")
    with pytest.raises(
        InputError, match=r"disk: expected a folder for the teacher signal .*other alone, found that of"
    ):
        open_data(tmp_path / "other", tmp_path / "disk")
    (out / "data").unlink()  # the first no longer uses it
    assert (open_data(tmp_path / "other", tmp_path / "disk") / "abc").exists()


def test_a_disk_that_is_not_mounted_is_not_taken_for_an_empty_one(out, tmp_path):
    open_data(out, tmp_path / "disk")
    os.rename(tmp_path / "disk", tmp_path / "unmounted")
    for store in (None, tmp_path / "disk"):
        with pytest.raises(InputError, match="data: expected its folder .*, found none; mount its disk"):
            open_data(out, store)
    assert not (tmp_path / "disk").exists()


def test_data_stay_where_they_are_if_the_store_is_too_small(out, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "find_free", lambda _: 1)
    with pytest.raises(InputError, match="of free disk for the teacher signal that is moved there, found 1 B"):
        open_data(out, tmp_path / "disk")
    assert (out / "data/abc/00000.safetensors").read_text() == "shard"
