"""Records that are read from disk at each pass: the same as in memory, by content, refused when a file changes."""

import os

import pytest
from training_runs import write_splits

from distill.common.errors import InputError
from distill.records.split_reader import JoinedRecords, SplitReader, digest_records, list_sources
from distill.records.splits import read_split


@pytest.fixture
def folder(tmp_path, records):
    return write_splits(tmp_path / "data", records, records[:3])


def test_each_pass_gives_the_records_of_the_split(folder):
    reader = SplitReader(folder, "train")
    assert list(reader) == list(reader) == read_split(folder, "train")
    assert len(reader) == len(list(reader))


def test_the_digest_depends_on_contents_and_order_alone(folder, records, tmp_path):
    reader = SplitReader(folder, "train")
    copy = write_splits(tmp_path / "copy", records, records[:3])
    assert reader.digest == SplitReader(copy, "train").digest == digest_records(records)
    assert reader.digest != SplitReader(folder, "val").digest
    assert digest_records(records[::-1]) != digest_records(records)
    changed = [records[0] | {"finish_reason": "length"}, *records[1:]]
    assert digest_records(changed) != digest_records(records)


def test_joined_records_follow_one_another(folder, records):
    joined = JoinedRecords(SplitReader(folder, "train"), records[:2])
    assert list(joined) == [*records, *records[:2]]
    assert len(joined) == len(records) + 2
    assert list_sources(joined) == [folder / "train.jsonl"]
    in_memory = JoinedRecords(records, records[:2])
    assert digest_records(joined) == digest_records(in_memory)
    assert digest_records(joined) != digest_records(JoinedRecords(records[:2], records))


def test_a_malformed_line_is_named_before_any_record_is_used(folder):
    with open(folder / "train.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"train\.jsonl"):
        SplitReader(folder, "train")


def test_a_file_that_is_replaced_during_the_job_is_refused(folder, records):
    reader = SplitReader(folder, "train")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_splits(folder, [records[0], *records], [])
    with pytest.raises(InputError, match=r"train\.jsonl: expected the same records during the whole job"):
        list(reader)


def test_another_time_of_the_file_changes_nothing(folder, records):
    reader = SplitReader(folder, "train")
    os.utime(reader.path, (0, 0))
    assert list(reader) == list(reader)
