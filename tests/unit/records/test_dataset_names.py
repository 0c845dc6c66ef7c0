"""Names of datasets on the hub, and the folders that they are downloaded to."""

import pytest

from distill.records.dataset_names import find_name_problem, get_raw_file, parse_dataset


@pytest.mark.parametrize(
    ("name", "parts", "folder"),
    [
        ("hf:datasets/o/n", ("o/n", None, None, "train"), "datasets/hf/o/n/train"),
        ("hf:datasets/o/n:test", ("o/n", None, None, "test"), "datasets/hf/o/n/test"),
        ("hf:datasets/o/n@v1.0", ("o/n", "v1.0", None, "train"), "datasets/hf/o/n@v1.0/train"),
        ("hf:datasets/o/n@v1:main/test", ("o/n", "v1", "main", "test"), "datasets/hf/o/n@v1/main/test"),
    ],
)
def test_names_have_their_parts(name, parts, folder):
    assert parse_dataset(name) == parts
    assert parse_dataset(name).folder == folder
    assert get_raw_file(name) == f"{folder}/download.json"
    assert find_name_problem(name) is None


@pytest.mark.parametrize("name", ["hf:datasets/n", "hf:o/n", "hf:datasets/o/n:a/b/c", "hf:datasets/o/n@a/b", "s3:x"])
def test_malformed_names_are_told_of(name):
    assert parse_dataset(name) is None
    assert "hf:datasets/OWNER/NAME" in find_name_problem(name)


def test_paths_of_files_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b.json").touch()
    for path in ("data/{category}.json", "a:b.json", "/data/x.parquet"):
        assert find_name_problem(path) is None
        assert get_raw_file(path) == path
