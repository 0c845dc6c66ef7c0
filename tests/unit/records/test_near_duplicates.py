"""Near-duplicate prompts: which pairs are reported, what is dropped, and further files with held-out prompts."""

import csv
import json
import logging
from fractions import Fraction

import pytest
from conversations import make_conversation

import find_near_duplicates as script
from distill.common.errors import InputError
from distill.common.files import read_jsonl, write_jsonl
from distill.records.near_duplicates import get_further_text
from distill.records.options import PromptOptions
from distill.records.prompts import make_prompts
from distill.records.raw_records import get_fields, get_fields_uid, get_uid
from distill.records.splits import get_split, read_split, split_answers

SPLIT = ["--val-fraction", "0.2", "--test-fraction", "0.3", "--seed", "42"]


def find_split(uid):
    return get_split(uid, 42, Fraction("0.2"), Fraction("0.3"))


def make_prompt(text, number=0, **fields):
    return {
        "id": number,
        "uid": get_uid("S", text),
        "system": "S",
        "prompt": text,
        "label": None,
        "origin": "sft",
    } | fields


def make_in(split, text):
    """A prompt in a split: the text with as many white spaces at its end, which are not compared, as it takes."""
    return next(
        prompt for spaces in range(100) if find_split((prompt := make_prompt(text + " " * spaces))["uid"]) == split
    )


def search(folder, prompts, *options, others=()):
    """Run the script; return (rows of the table, counts, kept prompts)."""
    write_jsonl(folder / "prompts.jsonl", prompts)
    files = {name: folder / name for name in ("pairs.csv", "counts.json", "kept.jsonl")}
    paths = [f"--{path.stem}={path}" for path in files.values()]
    more = ["--others", *map(str, others)] if others else []
    script.main(["--category", "banks", "--prompts", str(folder / "prompts.jsonl"), *SPLIT, *paths, *more, *options])
    with open(files["pairs.csv"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [record for _, record in read_jsonl(files["kept.jsonl"])]
    return rows, json.loads(files["counts.json"].read_text(encoding="utf-8")), kept


TEST = make_in("test", "什么是四圣谛？请逐条说明它们的意思。")
VAL = make_in("val", "How many moons does Jupiter have?")
FIRST = make_in("train", "Name three rivers in Spain.")
OF_TEST = make_in("train", "什么是四圣谛?请逐条说明它们的意思!")
OF_VAL = make_in("train", "HOW many moons does jupiter have")
SECOND = make_in("train", "Name three rivers in spain!")
OTHER = make_in("train", "Compose a poem about snow")
LAST = make_in("train", "怎样烤面包？")
PROMPTS = [OF_TEST, FIRST, TEST, OF_VAL, SECOND, VAL, OTHER, LAST]


def test_training_prompts_are_reported_and_nothing_is_dropped_by_default(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        rows, counts, kept = search(tmp_path, PROMPTS, "--threshold", "0.7")
    assert [(row["uid"], row["found_in"], row["other"]) for row in rows] == [
        (OF_TEST["uid"], "test", TEST["uid"]),
        (OF_VAL["uid"], "val", VAL["uid"]),
        (SECOND["uid"], "train", FIRST["uid"]),
    ]
    assert (rows[0]["text"], rows[0]["other_text"]) == (OF_TEST["prompt"], TEST["prompt"])
    assert rows[2]["similarity"] == f"{20 / 22:.4f}"  # of 21 3-grams each, the last ones differ
    assert kept == PROMPTS
    assert counts == {
        "category": "banks",
        "threshold": 0.7,
        "shingle_size": 3,
        "action": "report",
        "prompts": {"train": 6, "val": 1, "test": 1},
        "compared_with": {"test": 1, "val": 1},
        "near_duplicates": {"test": 1, "val": 1, "train": 1},
        "dropped": 0,
        "incomplete": 0,
        "uids": [OF_TEST["uid"], OF_VAL["uid"], SECOND["uid"]],
    }
    line = "banks: 3 of 6 training prompts are near-duplicates (Jaccard similarity of 3-grams from 0.7): "
    assert line + "1 of test, 1 of val and 1 of train; 0 dropped" in caplog.text


def test_training_prompts_are_dropped_and_held_out_ones_are_not(tmp_path):
    _, counts, kept = search(tmp_path, PROMPTS, "--threshold", "0.7", "--action", "drop")
    assert kept == [FIRST, TEST, VAL, OTHER, LAST]
    assert counts["dropped"] == len(counts["uids"]) == 3


def test_a_prompt_that_is_dropped_takes_no_other_with_it(tmp_path):
    """Each prompt resembles the one before it and no other: every second one stays."""
    texts = ["abcdefghij klmnopqrst", "efghij klmnopqrst uvwx", "j klmnopqrst uvwx 1234", "opqrst uvwx 1234 5678"]
    prompts = [make_in("train", text) for text in texts]
    options = ["--threshold", "0.5", "--shingle-size", "1", "--action", "drop"]
    rows, _, kept = search(tmp_path, prompts, *options)
    assert kept == [prompts[0], prompts[2]]
    assert [(row["uid"], row["other"]) for row in rows] == [
        (prompts[1]["uid"], prompts[0]["uid"]),
        (prompts[3]["uid"], prompts[2]["uid"]),
    ]


def test_the_splits_are_those_of_the_answers(tmp_path):
    prompts = [make_prompt(f"question {number:03}: {hex(number * 7919)}", number) for number in range(200)]
    _, counts, _ = search(tmp_path, prompts, "--threshold", "1")
    answer = {"raw_output": "a", "usable": True, "problem": None, "finish_reason": "stop", "sample": 0}
    write_jsonl(tmp_path / "answers.jsonl", [prompt | answer for prompt in prompts])
    split_answers(tmp_path / "answers.jsonl", Fraction("0.2"), Fraction("0.3"), 42, tmp_path / "splits")
    sizes = {name: len(read_split(tmp_path / "splits", name)) for name in ("train", "val", "test")}
    assert counts["prompts"] == sizes


def test_turns_of_one_conversation_are_not_near_duplicates_of_each_other(tmp_path):
    records = [make_conversation(number) | {"origin": "sft"} for number in range(8)]
    records = [record | {"uid": get_fields_uid(get_fields(record))} for record in records]
    write_jsonl(tmp_path / "mix.jsonl", records)
    make_prompts(tmp_path / "mix.jsonl", [], None, tmp_path / "made.jsonl", PromptOptions(targets="all"))
    prompts = [prompt for _, prompt in read_jsonl(tmp_path / "made.jsonl")]
    assert len(prompts) > 8
    rows, _, _ = search(tmp_path, prompts, "--threshold", "0.5")
    first = {prompt["uid"]: prompt.get("turns", [{"content": prompt["prompt"]}])[0]["content"] for prompt in prompts}
    assert rows
    assert all(first[row["uid"]] != first[row["other"]] for row in rows)


def test_held_out_prompts_of_other_categories_count_too(tmp_path):
    others = tmp_path / "households.jsonl"
    write_jsonl(others, [TEST, SECOND, make_in("train", "Write a poem about snow")])
    rows, counts, kept = search(tmp_path, [OF_TEST, FIRST, OTHER], "--action", "drop", others=[others])
    assert [(row["uid"], row["found_in"], row["other"]) for row in rows] == [(OF_TEST["uid"], "test", TEST["uid"])]
    assert counts["prompts"] == {"train": 3, "val": 0, "test": 0}
    assert kept == [FIRST, OTHER]


def test_further_files_are_compared(tmp_path):
    array, lines = tmp_path / "questions.json", tmp_path / "chats.jsonl"
    array.write_text(json.dumps([{"question": "Where?"}, {"instruction": "Name three rivers", "input": "in spain"}]))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "compose a poem ABOUT snow"},
        {"role": "assistant", "content": "No."},
    ]
    write_jsonl(lines, [{"messages": messages, "prompt": None}])
    rows, counts, kept = search(tmp_path, PROMPTS, "--action", "drop", "--against", str(array), str(lines))
    found = {(row["uid"], row["found_in"], row["other"]) for row in rows}
    assert found == {
        (OF_TEST["uid"], "test", TEST["uid"]),
        (OF_VAL["uid"], "val", VAL["uid"]),
        (FIRST["uid"], str(array), f"{array}:record 2"),
        (SECOND["uid"], str(array), f"{array}:record 2"),
        (OTHER["uid"], str(lines), f"{lines}:1"),
    }
    assert counts["compared_with"] == {"test": 1, "val": 1, str(array): 2, str(lines): 1}
    assert kept == [TEST, VAL, LAST]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("text", "file.jsonl:7: record: expected an object, found 'text'"),
        ({"text": "a"}, "record: expected an object with prompt or question or instruction or messages, found {'text'"),
        ({"prompt": " "}, "prompt: expected text that is not blank, found ' '"),
        ({"question": 5}, "question: expected text that is not blank, found 5"),
        ({"prompt": "\ud800"}, r"prompt: expected text that is not blank, found '\ud800'"),
        ({"instruction": "a", "input": 5}, "input: expected text or nothing, found 5"),
        ({"messages": "a"}, "messages: expected a list of messages, found 'a'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: expected text, found None"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages: expected text that is not blank, found [{"),
    ],
)
def test_a_malformed_record_of_a_further_file_is_named(tmp_path, record, said):
    with pytest.raises(InputError) as error:
        get_further_text(record, "file.jsonl", 7)
    assert "file.jsonl:7: " in str(error.value)
    assert said in str(error.value)


def test_a_further_file_without_records_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, said in (("empty.jsonl", "expected at least one record"), ("missing.jsonl", "no such file")):
        with pytest.raises(InputError, match=said):
            search(tmp_path, PROMPTS, "--against", str(tmp_path / name))


def test_dropping_everything_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="leaves none of the 2 training prompts: 1 of test, 1 of val and 0 of train"):
        search(tmp_path, [OF_TEST, TEST, OF_VAL, VAL], "--threshold", "0.7", "--action", "drop")
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_searches_that_leave_out_candidates_are_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("distill.records.text_index.MOST_COMPARED", 2)
    template = "Estimate the log change of the holding in {} for the next quarter"
    names = ["".join(chr(0x4E00 + 20 * number + place) for place in range(6)) for number in range(30)]
    rows, counts, _ = search(tmp_path, [make_in("train", template.format(name)) for name in names])
    assert rows == []
    assert counts["incomplete"] > 10
    assert f"banks: {counts['incomplete']} searches left out candidates" in caplog.text
