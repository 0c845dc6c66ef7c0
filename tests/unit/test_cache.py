"""The cache of answers outlives kills, torn lines and several writers."""

import os

from distill.cache import CacheWriter, read_cache


def answer(uid):
    return {"uid": uid, "raw_output": f"−0.1 für {uid}", "finish_reason": "stop", "generated_tokens": 3}


def test_what_was_added_is_read_back(tmp_path):
    with CacheWriter(tmp_path / "new" / "folder") as writer:
        writer.add([answer("a"), answer("b")])
        # Before the writer closes: a kill from here on loses nothing of it.
        assert read_cache(tmp_path / "new" / "folder") == {"a": answer("a"), "b": answer("b")}


def test_a_torn_line_costs_itself_only(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.add([answer("a"), answer("b")])
    whole = writer.path.read_bytes()
    for cut in range(1, len(whole)):
        writer.path.write_bytes(whole[:cut])
        found = read_cache(tmp_path)
        assert set(found) <= {"a", "b"}
        assert all(found[uid] == answer(uid) for uid in found)
        assert len(found) >= whole[:cut].count(b"\n")


def test_two_writers_do_not_meet(tmp_path):
    with CacheWriter(tmp_path) as one, CacheWriter(tmp_path) as other:
        one.add([answer("a")])
        other.add([answer("b")])
        one.add([answer("c")])
    assert set(read_cache(tmp_path)) == {"a", "b", "c"}


def test_a_writer_without_answers_leaves_no_file(tmp_path):
    with CacheWriter(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert read_cache(tmp_path / "absent") == {}
