"""Splits of datasets from a local hub server: their files, their revision, and errors that name what there is."""

import hashlib
import json

import pytest
import tenacity
from hub_server import COMMIT, HubServer
from reading import write_rows

import download_dataset
from distill.common.errors import InputError
from distill.models import download as downloads

CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test.jsonl
- config_name: tables
  data_files: tables/*.csv
  sep: ;
---
"""


@pytest.fixture
def dataset(tmp_path):
    """A dataset's repository with two splits, whose files have no card."""
    folder = tmp_path / "there"
    (folder / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_rows(folder / f"data/{name}.parquet", [{"prompt": name, "completion": "A"}])
    (folder / ".gitattributes").write_text("")
    (folder / "notes.txt").write_text("no data")
    return folder


@pytest.fixture
def hub(dataset, monkeypatch, tmp_path):
    """A server for the dataset; retries do not wait."""
    with HubServer({}, {"owner/name": dataset}) as server:
        server.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(downloads, "WAIT", tenacity.wait_none())
        yield server


def fetch(tmp_path, source="hf:datasets/owner/name"):
    out = tmp_path / "here"
    download_dataset.main(["--source", source, "--out", str(out)])
    return out


def refuse(tmp_path, source="hf:datasets/owner/name"):
    with pytest.raises(InputError) as error:
        fetch(tmp_path, source)
    assert not (tmp_path / "here/download.json").exists()
    assert str(error.value).startswith(f"{source}: ")
    return str(error.value).removeprefix(f"{source}: ")


def read_manifest(out):
    return json.loads((out / "download.json").read_text())


def write_card(folder, text=CARD):
    for name in ("main/train-a.jsonl", "main/test.jsonl", "tables/x.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "README.md").write_text(text)


def test_the_files_of_a_split_are_downloaded_and_no_others(hub, dataset, tmp_path):
    out = fetch(tmp_path)
    manifest = read_manifest(out)
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert [entry["name"] for entry in manifest["files"]] == names
    for entry in manifest["files"]:
        data = (out / entry["name"]).read_bytes()
        assert data == (dataset / entry["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
    assert (manifest["source"], manifest["commit"]) == ("hf:datasets/owner/name", COMMIT)
    assert hub.served.keys() == {"train-00000-of-00002.parquet", "train-00001-of-00002.parquet"}
    served = dict(hub.served)
    (out / "download.json").unlink()
    fetch(tmp_path)
    assert hub.served == served  # nothing was downloaded again


def test_another_split_is_named(hub, tmp_path):
    names = [entry["name"] for entry in read_manifest(fetch(tmp_path, "hf:datasets/owner/name:test"))["files"]]
    assert names == ["data/test-00000-of-00001.parquet"]


def test_subsets_are_those_of_the_card(hub, dataset, tmp_path):
    write_card(dataset)
    manifest = read_manifest(fetch(tmp_path, "hf:datasets/owner/name@main:main/test"))
    assert [entry["name"] for entry in manifest["files"]] == ["main/test.jsonl"]
    assert "separator" not in manifest


def test_the_separator_is_that_of_the_card(hub, dataset, tmp_path):
    write_card(dataset, "---\nconfigs:\n- config_name: tables\n  data_files: tables/*.csv\n  sep: ;\n---\n")
    manifest = read_manifest(fetch(tmp_path))
    assert [entry["name"] for entry in manifest["files"]] == ["tables/x.csv"]
    assert manifest["separator"] == ";"


@pytest.mark.parametrize("revision", ["main", "v1", "2" * 40])
def test_branches_and_tags_are_resolved_to_a_commit(hub, tmp_path, revision):
    hub.commits |= {"v1": "2" * 40}
    manifest = read_manifest(fetch(tmp_path, f"hf:datasets/owner/name@{revision}"))
    assert manifest["commit"] == (COMMIT if revision == "main" else "2" * 40)


def test_files_of_another_revision_are_removed(hub, dataset, tmp_path):
    out = fetch(tmp_path)
    name = "data/train-00001-of-00002.parquet"
    (dataset / name).rename(dataset / "data/train-00001-of-00001.parquet")
    (out / "mine.txt").write_text("kept")
    fetch(tmp_path)
    assert not (out / name).exists()
    assert (out / "mine.txt").exists()


def test_a_broken_and_a_corrupt_download_are_repaired(hub, dataset, tmp_path):
    (dataset / "data").joinpath("train-00000-of-00002.parquet").write_bytes(hashlib.shake_128(b"x").digest(500_000))
    hub.breaks["train-00000-of-00002.parquet"] = [200_000]
    hub.spoiled["train-00001-of-00002.parquet"] = 1
    out = fetch(tmp_path)
    for entry in read_manifest(out)["files"]:
        assert (out / entry["name"]).read_bytes() == (dataset / entry["name"]).read_bytes()
    assert any(asked and not asked.startswith("bytes=0-") for asked in hub.ranges("train-00000-of-00002.parquet"))
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "hf:datasets/owner/name:trian",
            "expected a split of the dataset, one of test, train, found trian; did you mean train?",
        ),
        (
            "hf:datasets/owner/name:mian/train",
            "expected a subset of the dataset, one of default, found mian (append :SUBSET/SPLIT)",
        ),
        ("hf:datasets/owner/name@v9", "expected a branch, tag or commit of the dataset, found 'v9'"),
        ("hf:datasets/owner/other", "no such dataset at http"),
        ("hf:owner/name", "expected hf:datasets/OWNER/NAME, optionally with @REVISION and then :SPLIT"),
    ],
)
def test_what_is_not_there_is_named(hub, tmp_path, source, message):
    assert message in refuse(tmp_path, source)


def test_one_of_several_subsets_must_be_named(hub, dataset, tmp_path):
    write_card(dataset)
    text = "expected a subset of the dataset, one of main, tables, found none (append :SUBSET/SPLIT)"
    assert refuse(tmp_path) == text


def test_without_a_train_split_another_one_must_be_named(hub, dataset, tmp_path):
    for path in dataset.glob("data/train*"):
        path.unlink()
    assert refuse(tmp_path) == "expected a split of the dataset, one of test, found train (append :SPLIT)"


@pytest.mark.parametrize("suffix", ["jsonl.gz", "zip", "txt", "png"])
def test_files_of_other_formats_are_refused(hub, dataset, tmp_path, suffix):
    for path in dataset.glob("data/*"):
        path.unlink()
    (dataset / "notes.txt").unlink()
    (dataset / f"train.{suffix}").write_bytes(b"x")
    assert f"train.{suffix}" in refuse(tmp_path)
    assert f"train.{suffix}" not in hub.served


@pytest.mark.parametrize("text", ["configs: [3]", "configs: {", "configs:\n- config_name: a\n  data_files: {x: 1}"])
def test_a_broken_card_is_an_error(hub, dataset, tmp_path, text):
    (dataset / "README.md").write_text(f"---\n{text}\n---\n")
    assert refuse(tmp_path).startswith("expected a dataset that the library `datasets` reads, found: ")


def test_files_outside_the_repository_are_refused(hub, dataset, tmp_path):
    outside = tmp_path / "secret.jsonl"
    outside.write_text("{}")
    (dataset / "README.md").write_text(f"---\nconfigs:\n- config_name: a\n  data_files: {outside}\n---\n")
    assert f"expected files of the dataset's own repository, found {outside}" in refuse(tmp_path)


def test_a_private_dataset_needs_a_token_of_the_environment(hub, tmp_path, monkeypatch, caplog):
    hub.token, hub.denial = "hf_secret", "RepoNotFound"
    assert "no such dataset at http" in (text := refuse(tmp_path))
    assert "or it is private and needs HF_TOKEN" in text
    hub.denial = "GatedRepo"
    assert "accept the dataset's terms on its page, and set HF_TOKEN" in refuse(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with caplog.at_level("DEBUG", logger="distill"):
        out = fetch(tmp_path)
    assert "hf_secret" not in caplog.text
    assert all(b"hf_secret" not in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_an_unreachable_hub_is_an_error(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refuse(tmp_path)
