"""Tokenized examples of a working directory: listed, and removed if their records have changed."""

import os
import socket
import subprocess

import pytest
from tiny import build_tokenizer
from training_runs import write_splits

from distill.models import example_folders
from distill.models.chat import ChatTemplate
from distill.models.example_folders import EXAMPLES, list_folders
from distill.models.examples import encode_examples
from distill.plan.prune_examples import describe_examples, list_examples, prune_examples
from distill.records.split_reader import JoinedRecords, SplitReader


@pytest.fixture
def directory(tmp_path, records, monkeypatch):
    """A working directory with examples of train, of train and val, and what a killed job and two others have begun."""
    folder = tmp_path / "run"
    splits = folder / "artifacts/distill_data/processed/banks"
    write_splits(splits, records, records[:3])
    monkeypatch.chdir(folder)
    chat = ChatTemplate(build_tokenizer())
    train, val = (SplitReader(splits.relative_to(folder), name) for name in ("train", "val"))
    for made in (train, JoinedRecords(train, val)):
        encode_examples(made, chat, None, 10_000, cache=EXAMPLES)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for host, process in ((socket.gethostname(), ended.pid), (socket.gethostname(), os.getpid()), ("other", 1)):
        (folder / EXAMPLES / f".{'0' * 32}@{host}@{process}@0.tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_list_names_splits_sizes_and_what_is_of_no_use(directory):
    text = describe_examples([directory])
    assert text.startswith(f"{directory / EXAMPLES}: tokenized examples: 3 folders, ")
    train, val = (directory / f"artifacts/distill_data/processed/banks/{name}.jsonl" for name in ("train", "val"))
    assert f"10 examples of {train}, " in text
    assert f"13 examples of {train} and {val}, " in text
    assert text.count("incomplete") == 1
    assert "of other records or software than the current" not in text
    assert describe_examples([directory / "elsewhere"]) == ""


def test_only_examples_of_other_records_are_removed(directory, records):
    kept = list_folders(directory / EXAMPLES)
    text = prune_examples([directory], is_confirmed=False)
    assert "tokenized examples: 1 folder, " in text
    assert text.endswith("would be removed: pass --yes to remove them")
    assert len(list_examples(directory / EXAMPLES)) == 3
    assert prune_examples([directory], is_confirmed=True).endswith("removed")
    assert len(list((directory / EXAMPLES).glob(".*.tmp"))) == 2  # of the jobs that may still run
    assert [one.path for one in list_examples(directory / EXAMPLES)] == kept
    assert prune_examples([directory], is_confirmed=True) == ""
    splits = directory / "artifacts/distill_data/processed/banks"
    for path in splits.iterdir():
        path.unlink()
    splits.rmdir()
    write_splits(splits, records, records[:2])  # val has changed
    assert describe_examples([directory]).count("of other records or software than the current") == 1
    prune_examples([directory], is_confirmed=True)
    (left,) = list_examples(directory / EXAMPLES)
    assert left.path in kept
    assert "10 examples" in left.text


def test_examples_of_other_software_are_removed(directory, monkeypatch):
    monkeypatch.setattr(example_folders, "version", lambda name: "0")
    assert [one.is_current for one in list_examples(directory / EXAMPLES)] == [False] * 3


def test_examples_are_current_in_a_directory_that_has_moved(directory):
    moved = directory.rename(directory.with_name("moved"))
    assert [one.is_current for one in list_examples(moved / EXAMPLES)] == [True, True, False]
    (moved / "artifacts/distill_data/processed/banks/val.jsonl").unlink()
    assert sorted(one.is_current for one in list_examples(moved / EXAMPLES)) == [False, False, True]
