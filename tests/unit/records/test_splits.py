"""Splits: assignment by uid alone, files that agree line by line, and errors that say what to do."""

import json
import logging
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import split_answers as script
from distill.common.errors import InputError
from distill.common.files import read_jsonl, unescape_line, write_jsonl
from distill.records.raw_records import get_uid
from distill.records.splits import SPLITS, get_split, read_split, split_answers, stream_split

TENTH = Fraction("0.1")


def make_answer(number: int, text: str = "<think>x</think>\n<answer>{}</answer>", **fields) -> dict:
    system, prompt = "S\\n", f"prompt {number}\r\nline\u2028same line"
    known = {"id": number, "uid": get_uid(system, prompt), "system": system, "prompt": prompt, "raw_output": text}
    parsed = {"think": "x", "answer": "{}", "parsed_value": 0.5, "label": number / 7, "origin": "grpo"}
    ended = {"finish_reason": "stop", "generated_tokens": 9, "usable": True, "problem": None}
    return {**known, **parsed, **ended, **fields}


def split(folder: Path, answers: list[dict], val=TENTH, test=TENTH, seed=42, out="out") -> Counter:
    write_jsonl(folder / "answers.jsonl", answers)
    return split_answers(folder / "answers.jsonl", val, test, seed, folder / out)


def read_uids(folder: Path) -> dict[str, set[str]]:
    return {name: {record["uid"] for record in read_split(folder, name)} for name in SPLITS}


def test_every_usable_record_is_in_one_split(tmp_path):
    counts = split(tmp_path, [make_answer(i) for i in range(500)])
    uids = read_uids(tmp_path / "out")
    assert sum(len(part) for part in uids.values()) == 500
    assert len(set.union(*uids.values())) == 500
    assert {name: len(part) for name, part in uids.items()} == dict(counts)
    assert 30 < counts["val"] < 70
    assert 30 < counts["test"] < 70
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{kind}" for name in SPLITS for kind in ("source", "target", "jsonl")
    )


def test_file_formats(tmp_path):
    split(tmp_path, [make_answer(i, f"a\\b {i}\n", label=None) for i in range(60)])
    record = next(stream_split(tmp_path / "out", "train"))
    number = record["id"]
    assert record == {
        "id": number,
        "uid": make_answer(number)["uid"],
        "sample": 0,
        "origin": "grpo",
        "label": None,
        "finish_reason": "stop",
        "messages": [
            {"role": "system", "content": "S\\n"},
            {"role": "user", "content": f"prompt {number}\r\nline\u2028same line"},
            {"role": "assistant", "content": f"a\\b {number}\n"},
        ],
    }
    source = (tmp_path / "out" / "train.source").read_bytes().split(b"\n")[0].decode()
    assert source == f"S\\\\n\\n\\nprompt {number}\\r\\nline\\u2028same line"
    assert unescape_line(source) == f"S\\n\n\nprompt {number}\r\nline\u2028same line"
    assert (tmp_path / "out" / "train.target").read_bytes().split(b"\n")[0].decode() == f"a\\\\b {number}\\n"


def test_records_never_move_when_the_data_grow(tmp_path):
    split(tmp_path, [make_answer(i) for i in range(100)])
    before = read_uids(tmp_path / "out")
    split(tmp_path, [make_answer(i, "another text", id=0) for i in range(299, -1, -1)])
    after = read_uids(tmp_path / "out")
    for name in SPLITS:
        assert before[name] <= after[name]


def test_a_changed_fraction_moves_records_to_or_from_train_only():
    uids = [get_uid("S", str(i)) for i in range(3000)]
    before = {uid: get_split(uid, 42, TENTH, TENTH) for uid in uids}
    more_test = {uid: get_split(uid, 42, TENTH, Fraction("0.2")) for uid in uids}
    more_val = {uid: get_split(uid, 42, Fraction("0.3"), TENTH) for uid in uids}
    assert {(before[u], more_test[u]) for u in uids if before[u] != more_test[u]} == {("train", "test")}
    assert {(before[u], more_val[u]) for u in uids if before[u] != more_val[u]} == {("train", "val")}
    assert {uid: get_split(uid, 43, TENTH, TENTH) for uid in uids} != before


def test_edges_of_the_fractions():
    uids = [get_uid("S", str(i)) for i in range(300)]
    assert {get_split(uid, 1, Fraction(0), Fraction(0)) for uid in uids} == {"train"}
    assert {get_split(uid, 1, Fraction(0), Fraction(1)) for uid in uids} == {"test"}
    assert {get_split(uid, 1, Fraction(1), Fraction(0)) for uid in uids} == {"val"}
    assert {get_split(uid, 1, Fraction(1, 2), Fraction(1, 2)) for uid in uids} == {"val", "test"}


def test_unusable_answers_are_left_out_and_counted(tmp_path, caplog):
    bad = [make_answer(i, usable=False, problem="answer is not JSON", parsed_value=None) for i in range(7)]
    bad += [make_answer(i, usable=False, problem="no <answer> block") for i in range(7, 10)]
    with caplog.at_level(logging.INFO):
        counts = split(tmp_path, bad + [make_answer(i) for i in range(10, 110)])
    assert counts.total() == 100
    assert "110 answers = " in caplog.text
    assert "10 unusable; 7 answer is not JSON; 3 no <answer> block" in caplog.text
    assert not {answer["uid"] for answer in bad} & set.union(*read_uids(tmp_path / "out").values())


def test_empty_train_or_test_is_an_error_and_changes_no_file(tmp_path):
    split(tmp_path, [make_answer(i) for i in range(100)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError) as error:
        split(tmp_path, [make_answer(0)], test=Fraction("0.001"))
    assert "no record for test; " in str(error.value)
    assert "1 answers = 1 train + 0 val + 0 test + 0 unusable" in str(error.value)
    assert "raise split.test_fraction" in str(error.value)
    with pytest.raises(InputError, match="no record for train and test; .* 2 unusable; 2 empty text(.|\n)*raw_output"):
        split(tmp_path, [make_answer(i, usable=False, problem="empty text") for i in range(2)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_empty_val_is_a_warning_if_its_fraction_is_not_0(tmp_path, caplog):
    answers = [make_answer(i) for i in range(40)]
    split(tmp_path, answers, val=Fraction(0))
    assert not caplog.records
    split(tmp_path, answers, val=Fraction(1, 10**6))
    assert "val is empty" in caplog.text
    assert read_split(tmp_path / "out", "val") == []


def test_fractions_must_leave_something_to_train(tmp_path):
    with pytest.raises(InputError, match="expected a sum below 1"):
        split(tmp_path, [make_answer(0)], val=Fraction(1, 2), test=Fraction(1, 2))


def make_several(numbers, usable=lambda number, sample: True) -> list[dict]:
    """Make one to three answers to each prompt, depending on its number."""
    return [
        make_answer(i, f"answer {i}.{sample}", sample=sample, usable=usable(i, sample), problem="x")
        for i in numbers
        for sample in range(i % 3 + 1)
    ]


def test_train_takes_all_answers_of_a_prompt_and_the_others_its_first(tmp_path, caplog):
    answers = make_several(range(300), usable=lambda number, sample: (number + sample) % 4 > 0)
    with caplog.at_level(logging.INFO):
        counts = split(tmp_path, answers)
    usable = {}
    for answer in answers:
        if answer["usable"]:
            usable.setdefault(answer["uid"], []).append(answer["raw_output"])
    for name in SPLITS:
        found = {}
        for record in read_split(tmp_path / "out", name):
            found.setdefault(record["uid"], []).append(record["messages"][2]["content"])
        assert found == {uid: usable[uid] if name == "train" else usable[uid][:1] for uid in found}
        assert all(get_split(uid, 42, TENTH, TENTH) == name for uid in found)
        assert sum(map(len, found.values())) == counts[name]
        # read_split has checked that the three files agree line by line.
        assert (tmp_path / "out" / f"{name}.target").read_bytes().count(b"\n") == counts[name]
    assert set.union(*read_uids(tmp_path / "out").values()) == usable.keys()
    rejected = sum(not answer["usable"] for answer in answers)
    further = len(answers) - rejected - counts.total()
    assert further > 10
    more = f"{further} further answers to the same prompts"
    assert f"{counts['test']} test + {more} + {rejected} unusable" in caplog.text


def test_the_split_contains_the_sample(tmp_path):
    split(tmp_path, make_several(range(60)))
    train = read_split(tmp_path / "out", "train")
    assert {record["sample"] for record in train} == {0, 1, 2}
    assert len({(record["uid"], record["sample"]) for record in train}) == len(train)


def test_a_prompt_with_other_answers_stays_in_its_split(tmp_path):
    split(tmp_path, [make_answer(i) for i in range(100)])
    before = read_uids(tmp_path / "out")
    split(tmp_path, make_several(range(100)))
    assert read_uids(tmp_path / "out") == before


def test_students_train_on_every_answer(tmp_path):
    from tiny import build_tokenizer

    from distill.models.chat import ChatTemplate
    from distill.models.examples import encode_examples

    split(tmp_path, make_several(range(60)))
    train = read_split(tmp_path / "out", "train")
    tokenizer = build_tokenizer()
    examples = encode_examples(train, ChatTemplate(tokenizer), None, 10**6)
    texts = [tokenizer.decode(example["completion"], skip_special_tokens=True) for example in examples]
    assert texts == [record["messages"][2]["content"] for record in train]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            [(0, 0), (1, 0), (0, 1)],
            r":3: uid: expected the answers to a prompt on consecutive lines \(line 1 has the same prompt\)",
        ),
        (
            [(0, 0), (1, None), (0, None)],
            r":3: uid: expected the answers to a prompt on consecutive lines \(line 1 has the same prompt\)",
        ),
        ([(0, 0), (1, 0), (1, 0)], r":3: sample: expected a number above 0 for another answer to the prompt of line 2"),
        ([(0, None), (0, None)], r":2: sample: expected a number above 0 for another answer to the prompt of line 1"),
        (
            [(0, 2), (0, 1)],
            r":2: sample: expected a number above 2 for another answer to the prompt of line 1, found 1",
        ),
        ([(0, "1")], r":1: sample: expected int, found '1'"),
    ],
    ids=["apart", "apart without sample", "twice", "twice without sample", "backwards", "text"],
)
def test_doubled_answers(tmp_path, answers, said):
    records = [make_answer(i) if sample is None else make_answer(i, sample=sample) for i, sample in answers]
    records[-1] |= {"usable": False, "problem": "x"}
    with pytest.raises(InputError, match=r"answers.jsonl" + said):
        split(tmp_path, records)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"raw_output": None}, "raw_output: expected str, found None"),
        ({"usable": "yes"}, "usable: expected bool, found 'yes'"),
        ({"label": "0.5"}, "label: expected int | float | None, found '0.5'"),
    ],
)
def test_malformed_answer(tmp_path, change, said):
    with pytest.raises(InputError) as error:
        split(tmp_path, [make_answer(0), make_answer(1, **change)])
    assert f"answers.jsonl:2: {said}" in str(error.value)


def test_missing_fields_of_an_answer_are_named_together(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": 0}\n')
    with pytest.raises(InputError, match="8 problems(.|\n)*:1: usable: expected bool, found 'nothing'"):
        split_answers(tmp_path / "answers.jsonl", TENTH, TENTH, 42, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (
            "target",
            lambda lines: [lines[0], b"other", *lines[2:]],
            r"train.target:2: line: expected the text of train.jsonl",
        ),
        (
            "source",
            lambda lines: [lines[1], lines[0], *lines[2:]],
            r"train.source:1: line: expected the text of train.jsonl",
        ),
        (
            "source",
            lambda lines: [*lines[:-1], b"one more", b""],
            r"train.source:\d+: line: expected the end of the file",
        ),
        ("target", lambda lines: [*lines[:-2], b""], r"train.target:\d+: line: expected a whole line for each record"),
        (
            "target",
            lambda lines: [*lines[:-2], lines[-2]],
            r"train.target:\d+: line: expected a whole line for each record",
        ),
        ("target", lambda lines: [b"\\x", *lines[1:]], r"train.target:1: line: expected escaped UTF-8 text"),
        ("target", lambda lines: [b"\xff", *lines[1:]], r"train.target:1: line: expected escaped UTF-8 text"),
        (
            "jsonl",
            lambda lines: [b'{"messages": 3}', *lines[1:]],
            r"train.jsonl:1: messages: expected system, user and",
        ),
        ("jsonl", lambda lines: [b'{"messages": ', *lines[1:]], r"train.jsonl:1: line: expected a JSON object"),
    ],
)
def test_files_that_differ_are_rejected(tmp_path, kind, change, said):
    split(tmp_path, [make_answer(i) for i in range(60)])
    path = tmp_path / "out" / f"train.{kind}"
    path.write_bytes(b"\n".join(change(path.read_bytes().split(b"\n"))))
    with pytest.raises(InputError, match=said):
        read_split(tmp_path / "out", "train")


def test_jsonl_files_appear_last(tmp_path, monkeypatch):
    import os

    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).suffix), replace(a, b)))
    write_jsonl(tmp_path / "answers.jsonl", [make_answer(i) for i in range(60)])
    order.clear()
    split_answers(tmp_path / "answers.jsonl", TENTH, TENTH, 42, tmp_path / "out")
    assert order == [".source"] * 3 + [".target"] * 3 + [".jsonl"] * 3


def test_script(tmp_path):
    write_jsonl(tmp_path / "answers.jsonl", [make_answer(i) for i in range(60)])
    argv = ["--answers", str(tmp_path / "answers.jsonl"), "--out", str(tmp_path / "out"), "--seed", "42"]
    script.main([*argv, "--val-fraction", "0.1", "--test-fraction", "0.1"])
    held = [record["messages"][1]["content"] for _, record in read_jsonl(tmp_path / "out" / "test.jsonl")]
    assert held
    assert json.loads((tmp_path / "out" / "val.jsonl").read_text().split("\n")[0])["origin"] == "grpo"
