"""Free disk space is checked where the files will be, and folders are measured without following links."""

from collections import namedtuple

import pytest

from distill.common import disk
from distill.common.errors import InputError


@pytest.fixture
def free(monkeypatch):
    """Let every disk have 1000 free bytes; returns the folders that were asked for."""
    asked = []

    def usage(path):
        asked.append(path)
        return namedtuple("Usage", "free")(1000)

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    return asked


def test_a_message_names_folder_need_and_free_space(free, tmp_path):
    folder = tmp_path / "not/yet/there"
    disk.check_free({folder: 1000}, "checkpoints")
    with pytest.raises(InputError) as error:
        disk.check_free({folder: 2.5e9}, "checkpoints", "lower train.save_total_limit")
    assert str(error.value) == (
        f"{folder}: expected 2.5 GB of free disk for checkpoints, found 1 kB; free space there (make disk lists what "
        "is stored), or lower train.save_total_limit"
    )
    assert set(free) == {tmp_path}


def test_folders_on_one_disk_need_their_space_together(free, tmp_path):
    needs = {tmp_path / "one": 600, tmp_path / "two": 400, tmp_path / "there already": -100}
    disk.check_free(needs, "checkpoints and student")
    with pytest.raises(InputError, match=r"one and .*two and .*: expected 1\.1 kB of free disk .*, found 1 kB"):
        disk.check_free(needs | {tmp_path / "two": 500}, "checkpoints and student")


def test_a_folder_is_measured_without_what_links_lead_to(tmp_path):
    (tmp_path / "inside/deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/large").write_bytes(b"x" * 500_000)
    (tmp_path / "inside/deep/file").write_bytes(b"x" * 100_000)
    (tmp_path / "inside/link").symlink_to(tmp_path / "outside")
    found = disk.measure_folder(tmp_path / "inside")
    assert 100_000 <= found < 200_000
    assert disk.measure_folder(tmp_path / "inside/link") >= 500_000
    assert disk.measure_folder(tmp_path / "inside/deep/file") == pytest.approx(found, abs=20_000)
    assert disk.measure_folder(tmp_path / "nothing") == 0
