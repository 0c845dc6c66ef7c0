"""Shards: which job answers which prompt; merged answers equal those of a single job."""

import argparse
import json
import logging
import re

import pytest

import gather_answers as script
from distill.common.errors import InputError
from distill.common.files import dump_json, read_jsonl, write_json, write_jsonl
from distill.records.raw_records import get_uid
from distill.teacher.gather_answers import gather_answers, merge_stats
from distill.teacher.shards import Shard, get_shard, parse_shard, select_shard

STATS = {
    "prompts": 0,
    "overlong": 0,
    "from_cache": 1,
    "generated_tokens": 100,
    "seconds": 2.0,
    "tokens_per_second": 50.0,
    "peak_memory_mb": 7,
    "peak_reserved_mb": 8,
}


def make_prompts(count):
    return [{"id": i, "uid": get_uid("S", str(i)), "system": "S", "prompt": str(i)} for i in range(count)]


def make_answers(prompts, samples=1):
    text = "a\u2028b ↓ \\n"
    return [
        {**prompt, "sample": sample, "raw_output": text, "parsed_value": 0.1 + prompt["id"] / 7, "label": None}
        for prompt in prompts
        for sample in range(1 + prompt["id"] % samples)
    ]


def write_shards(folder, prompts, count, samples=1, overlong=(), change=lambda number, records, stats: None):
    """Write the prompts and each shard's answers and stats; `change` edits these before they are written."""
    write_jsonl(folder / "prompts.jsonl", prompts)
    for number in range(1, count + 1):
        own = select_shard(prompts, Shard(number, count))
        records = make_answers([prompt for prompt in own if prompt["id"] not in overlong], samples)
        left_out = sum(prompt["id"] in overlong for prompt in own)
        stats = STATS | {"prompts": len(own), "overlong": left_out}
        change(number, records, stats)
        write_jsonl(folder / f"{number}.jsonl", records)
        write_json(folder / f"{number}.stats.json", stats)


def gather(folder, count):
    paths = [[folder / f"{n}.{kind}" for n in range(1, count + 1)] for kind in ("jsonl", "stats.json")]
    gather_answers(folder / "prompts.jsonl", *paths, folder / "out.jsonl", folder / "out.stats.json")


def test_a_shard_is_named_as_snakemake_names_it():
    assert parse_shard("3-of-12") == Shard(3, 12)
    assert str(Shard(3, 12)) == "3-of-12"


@pytest.mark.parametrize("text", ["", "1", "1/4", "1-of-", "a-of-4", "-1-of-4", "1-of-4 ", "¹-of-4"])
def test_what_names_no_shard_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"expected I-of-N, such as 1-of-4, found {text!r}")):
        parse_shard(text)


@pytest.mark.parametrize("text", ["0-of-4", "5-of-4", "0-of-0", "1-of-0"])
def test_a_shard_lies_among_the_others(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"with I from 1 to N, found '{text}'"):
        parse_shard(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_prompt_is_in_one_shard_and_stays_in_order(count):
    prompts = make_prompts(700)
    shards = [select_shard(prompts, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted((p for shard in shards for p in shard), key=lambda p: p["id"]) == prompts
    assert all(shard == sorted(shard, key=lambda p: p["id"]) for shard in shards)
    assert all(0.7 * 700 / count < len(shard) < 1.3 * 700 / count for shard in shards)


def test_a_prompt_more_changes_one_shard():
    before, after = make_prompts(100), [{"id": 0, "uid": get_uid("S", "new")}, *make_prompts(100)]
    shards = [Shard(number, 4) for number in range(1, 5)]
    changed = [shard for shard in shards if select_shard(before, shard) != select_shard(after, shard)]
    assert changed == [get_shard(get_uid("S", "new"), 4)]


def test_shards_may_be_empty():
    prompts = make_prompts(1)
    sizes = [len(select_shard(prompts, Shard(number, 3))) for number in range(1, 4)]
    assert sorted(sizes) == [0, 0, 1]
    assert select_shard([], Shard(1, 3)) == []


def test_shards_are_no_part_of_the_splits():
    """A uid's shard is independent of its split: one hash for both would put each split into one shard."""
    from fractions import Fraction

    from distill.records.splits import get_split

    own = select_shard(make_prompts(2000), Shard(1, 4))
    held = sum(get_split(prompt["uid"], 0, Fraction(0), Fraction(1, 4)) == "test" for prompt in own)
    assert 0.2 * len(own) < held < 0.3 * len(own)


@pytest.mark.parametrize(("prompts", "count", "samples"), [(50, 2, 1), (50, 3, 3), (2, 5, 2), (0, 2, 1)])
def test_gathered_answers_are_those_of_one_job_byte_by_byte(tmp_path, caplog, prompts, count, samples):
    prompts = make_prompts(prompts)
    prompts.reverse()  # the order of the prompts counts, not their ids
    write_shards(tmp_path, prompts, count, samples)
    with caplog.at_level(logging.INFO):
        gather(tmp_path, count)
    expected = "".join(dump_json(record) + "\n" for record in make_answers(prompts, samples))
    assert (tmp_path / "out.jsonl").read_bytes() == expected.encode()
    total = expected.count("\n")
    assert f"{len(prompts)} prompts of {count} shards = {len(prompts)} with {total} answers + 0 overlong" in caplog.text


def test_overlong_prompts_are_left_out(tmp_path):
    prompts = make_prompts(40)
    write_shards(tmp_path, prompts, 3, overlong={3, 4, 17})
    gather(tmp_path, 3)
    ids = [record["id"] for _, record in read_jsonl(tmp_path / "out.jsonl")]
    assert ids == [i for i in range(40) if i not in {3, 4, 17}]
    assert json.loads((tmp_path / "out.stats.json").read_text())["overlong"] == 3


def test_refused_prompts_are_left_out(tmp_path):
    def refuse(number, records, stats):
        if records:
            records.pop()
            stats.update(refused=1, problems={"empty text": number, "no <answer> block": 1})

    write_shards(tmp_path, make_prompts(40), 3, change=refuse)
    gather(tmp_path, 3)
    assert sum(1 for _ in read_jsonl(tmp_path / "out.jsonl")) == 37
    stats = json.loads((tmp_path / "out.stats.json").read_text())
    assert stats["refused"] == 3
    assert stats["problems"] == {"empty text": 6, "no <answer> block": 3}


def test_settings_are_those_of_every_job():
    for value in (True, False, None):
        stats = STATS | {"depends_on_batch": value}
        assert merge_stats([stats, stats])["depends_on_batch"] is value


def test_stats_are_those_of_all_jobs():
    other = STATS | {"prompts": 5, "generated_tokens": 200, "seconds": 4.5, "peak_memory_mb": 9, "peak_reserved_mb": 12}
    assert merge_stats([STATS, other, STATS | {"from_cache": 3}]) == {
        "prompts": 5,
        "overlong": 0,
        "from_cache": 5,
        "generated_tokens": 400,
        "seconds": 8.5,
        "tokens_per_second": 47.1,  # 400 tokens in 8.5 s
        "peak_memory_mb": 9,
        "peak_reserved_mb": 12,
    }
    idle = STATS | {"generated_tokens": 0, "seconds": 0.0, "tokens_per_second": 0.0}
    assert merge_stats([idle, idle])["tokens_per_second"] == 0.0


def refused(folder, count=2):
    with pytest.raises(InputError) as error:
        gather(folder, count)
    assert not (folder / "out.jsonl").exists()
    assert not (folder / "out.stats.json").exists()
    return str(error.value)


def test_a_missing_answer_is_refused(tmp_path):
    lost = []
    write_shards(tmp_path, make_prompts(20), 2, change=lambda n, records, _: n == 2 and lost.append(records.pop(2)))
    count = sum(1 for _ in read_jsonl(tmp_path / "2.jsonl")) + 1
    assert refused(tmp_path).endswith(
        f"2.jsonl: shard 2-of-2 has {count} prompts, 1 of them without an answer (ids {lost[0]['id']}); expected "
        f"{count} prompts, 0 of them overlong or refused, as in its stats"
    )


def test_overlong_prompts_that_are_not_missing_are_refused(tmp_path):
    write_shards(tmp_path, make_prompts(20), 2, change=lambda n, _, stats: stats.update(overlong=n - 1))
    assert re.search(
        r"2.jsonl: .* 0 of them without an answer; expected \d+ prompts, 1 of them overlong", refused(tmp_path)
    )


def test_answers_to_other_prompts_are_refused(tmp_path):
    write_shards(tmp_path, make_prompts(20), 2)
    write_jsonl(tmp_path / "prompts.jsonl", make_prompts(19))
    said = refused(tmp_path)
    assert re.search(r"\d.jsonl:\d+: uid: expected the prompts of shard \d-of-2 in their order, each once", said)
    write_jsonl(tmp_path / "prompts.jsonl", make_prompts(21))
    assert re.search(r"1 of them without an answer \(ids 20\); expected \d+ prompts", refused(tmp_path))


@pytest.mark.parametrize(("at", "field"), [(1, "sample"), (5, "uid")], ids=["beside it", "later"])
def test_a_doubled_answer_is_refused(tmp_path, at, field):
    def change(number, records, _):
        if number == 1:
            records.insert(at, records[0])

    write_shards(tmp_path, make_prompts(20), 2, change=change)
    assert f"1.jsonl:{at + 1}: {field}: expected" in refused(tmp_path)


def test_shards_in_another_order_are_refused(tmp_path):
    write_shards(tmp_path, make_prompts(20), 2)
    (tmp_path / "1.jsonl").rename(tmp_path / "0.jsonl")
    (tmp_path / "2.jsonl").rename(tmp_path / "1.jsonl")
    (tmp_path / "0.jsonl").rename(tmp_path / "2.jsonl")
    assert "1.jsonl:1: uid: expected the prompts of shard 1-of-2" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"prompts": 3}', json.dumps(STATS | {"overlong": "no"})])
def test_damaged_stats_are_refused(tmp_path, text):
    write_shards(tmp_path, make_prompts(20), 2)
    (tmp_path / "2.stats.json").write_text(text)
    assert "2.stats.json: expected an object" in refused(tmp_path).replace("a JSON object", "an object")


def test_script(tmp_path):
    prompts = make_prompts(10)
    write_shards(tmp_path, prompts, 2, samples=2)
    files = {"shards": ["1.jsonl", "2.jsonl"], "shard-stats": ["1.stats.json", "2.stats.json"]}
    argv = [part for name, paths in files.items() for part in (f"--{name}", *(str(tmp_path / path) for path in paths))]
    one = {"prompts": "prompts.jsonl", "out": "out.jsonl", "stats": "out.json"}
    argv += [part for name, path in one.items() for part in (f"--{name}", str(tmp_path / path))]
    script.main(argv)
    assert [record for _, record in read_jsonl(tmp_path / "out.jsonl")] == make_answers(prompts, 2)
    with pytest.raises(InputError, match="a stats file for each of 2 shards, found 1"):
        script.main([part for part in argv if not part.endswith("2.stats.json")])
