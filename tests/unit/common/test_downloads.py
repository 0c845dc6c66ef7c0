"""The manifest of a download: its files must be on disk, as it says."""

import json

import pytest

from distill.common.downloads import read_manifest
from distill.common.errors import InputError


def write(folder, text="12345", **changes):
    (folder / "a").write_text(text)
    manifest = {"source": "hf:datasets/o/n", "commit": "c", "files": [{"name": "a", "size": 5, "sha256": "0"}]}
    (folder / "download.json").write_text(json.dumps(manifest | changes))
    return folder / "download.json"


def test_a_manifest_is_read(tmp_path):
    assert read_manifest(write(tmp_path))["files"] == [{"name": "a", "size": 5, "sha256": "0"}]


def test_a_file_of_another_size_is_an_error(tmp_path):
    path = write(tmp_path, "1234")
    with pytest.raises(InputError, match=rf"a: expected 5 bytes, found 4 bytes; remove {path} to download it again"):
        read_manifest(path)


def test_a_file_that_is_gone_is_an_error(tmp_path):
    path = write(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match="a: expected 5 bytes, found no such file"):
        read_manifest(path)


@pytest.mark.parametrize("changes", [{"files": 3}, {"files": [{"name": "a"}]}, {"files": ["a"]}])
def test_another_json_file_is_an_error(tmp_path, changes):
    with pytest.raises(InputError, match="expected the manifest of a download"):
        read_manifest(write(tmp_path, **changes))
    (tmp_path / "download.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "download.json")
