"""Raw records: which are rejected, what identifies them, and where a label comes from."""

import json

import pytest

from distill.records.raw_records import check_label, check_record, get_label, get_texts, get_uid

FIELDS = ["holding_log_delta", "label_delta"]
KEY = "holding_log_delta"
THINK, ANSWER = "<think>x</think>", '<answer>{"holding_log_delta": 0.25}</answer>'


def chat(*turns: dict, system: str = "You are a manager.", user: str = "me=1", **fields) -> dict:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"messages": messages + [{"role": "assistant", **turn} for turn in turns], **fields}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "messages: expected a list of messages, found None"),
        ({"messages": "text"}, "messages: expected a list of messages, found 'text'"),
        ({"messages": []}, "one system message that is not blank, found '0 messages'"),
        ({"messages": ["text"]}, "messages[0]: expected an object with role and content, found 'text'"),
        ({"messages": [{"role": "function", "content": "a"}]}, "expected system | user | assistant | tool"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role: expected system | user | assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: expected text, found None"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content: expected text, found ['a']"),
        (chat({"content": "a", "loss": "no"}), "messages[2].loss: expected true | false, found 'no'"),
        (chat(system=" \n"), "expected one system message that is not blank"),
        (chat(user=""), "expected a user message that is not blank"),
        ({"messages": chat()["messages"][:1]}, "expected a user message that is not blank, found '0 messages'"),
        ({"messages": chat()["messages"][1:]}, "expected one system message that is not blank, found '0 messages'"),
        ({"messages": chat()["messages"] * 2}, "expected one system message that is not blank, found '2 messages'"),
        ({"messages": chat()["messages"][::-1]}, "expected system, user, then assistant turns"),
    ],
)
def test_bad_record_is_named(record, said):
    problems = check_record(record, "raw.jsonl", 7)
    assert problems[0].startswith("raw.jsonl:7: messages")
    assert said in problems[0]


def test_all_bad_messages_of_a_record_are_named():
    assert len(check_record({"messages": [{"role": "x", "content": ""}, 3]}, "raw.jsonl", 1)) == 2


@pytest.mark.parametrize(
    "turns", [[], [{"content": "a"}], [{"content": "a", "loss": False}, {"content": "b", "loss": True}]]
)
def test_good_records(turns):
    assert check_record(chat(*turns), "raw.jsonl", 1) == []


def test_uid_depends_on_the_prompt_alone():
    plain, more = chat(), chat({"content": "an answer"}, mgrno=3)
    assert get_uid(*get_texts(plain)) == get_uid(*get_texts(more))
    uids = {get_uid("a", "b"), get_uid("ab", ""), get_uid("a", "b "), get_uid("b", "a")}
    assert len(uids) == 4
    assert all(len(uid) == 32 and set(uid) <= set("0123456789abcdef") for uid in uids)


def test_uid_stays_what_it_was():
    # Another value would invalidate all cached answers and all splits.
    assert get_uid("You are a manager.", "me=1 ↓") == "a1c71e45ca33a7f409093a245e7be86e"


@pytest.mark.parametrize("value", [True, "0.5", float("nan"), float("inf"), [0.5], {}, 10**400])
def test_bad_label_names_file_line_and_field(value):
    problems = check_label({"label_delta": value}, FIELDS, "raw.jsonl", 3)
    assert problems[0].startswith("raw.jsonl:3: label_delta: expected a finite number, found ")
    json.dumps(problems)


def test_label_is_the_first_field_that_holds_something():
    record = chat({"content": ANSWER, "loss": True}, label_delta=2, holding_log_delta=None)
    assert check_label(record, FIELDS, "raw.jsonl", 1) == []
    assert get_label(record, "sft", FIELDS, KEY) == 2.0
    assert get_label({**record, "holding_log_delta": 0}, "sft", FIELDS, KEY) == 0.0
    assert get_label({**record, "holding_log_delta": 0}, "grpo", FIELDS, KEY) == 0.0


@pytest.mark.parametrize(
    ("turns", "label"),
    [
        ([{"content": THINK + ANSWER, "loss": True}], 0.25),
        ([{"content": THINK + ANSWER}], 0.25),
        ([{"content": THINK, "loss": False}, {"content": ANSWER, "loss": True}], 0.25),
        ([{"content": THINK, "loss": True}, {"content": ANSWER, "loss": True}], 0.25),
        ([{"content": THINK + ANSWER, "loss": False}], None),
        ([{"content": ANSWER, "loss": False}, {"content": "more", "loss": True}], None),
        ([{"content": THINK, "loss": True}], None),
        ([], None),
    ],
)
def test_label_from_the_sft_answer(turns, label):
    assert get_label(chat(*turns), "sft", FIELDS, KEY) == label


@pytest.mark.parametrize("loss", [{}, {"loss": False}, {"loss": True}])
def test_a_grpo_placeholder_is_never_a_label(loss):
    assert get_label(chat({"content": THINK + ANSWER, **loss}), "grpo", FIELDS, KEY) is None


def test_no_answer_key_no_label():
    assert get_label(chat({"content": ANSWER}), "sft", FIELDS, None) is None
