"""Records with several turns, tools and a teacher's own text: what is asked, what identifies it, and which split."""

import hashlib
import json
from fractions import Fraction

import pytest
from conversations import PRICE, call, make_chat, make_conversation, say

import make_prompts as script
from distill.common.files import read_jsonl, write_jsonl
from distill.records.conversations import format_turns, read_conversation, read_teacher_conversation
from distill.records.mix import Labels, Source, mix_records
from distill.records.options import PromptOptions
from distill.records.prompts import make_prompts
from distill.records.raw_records import check_record, get_fields, get_fields_uid, get_label, get_split_key, get_uid
from distill.records.splits import SPLITS, read_chat, read_split, split_answers

S, U, A = say("system", "S"), say("user", "U"), say("assistant", "A")
LABELS = ["holding_log_delta"]


def read(path):
    return [record for _, record in read_jsonl(path)]


def run_prompts(folder, records, label_fields=(), answer_key=None, **options):
    """The prompts of raw SFT records."""
    write_jsonl(folder / "sft.jsonl", records)
    source = Source("sft", folder / "sft.jsonl", Fraction(1))
    mix_records("banks", [source], 42, Labels(label_fields, answer_key), folder / "mix.jsonl")
    make_prompts(folder / "mix.jsonl", label_fields, answer_key, folder / "prompts.jsonl", PromptOptions(**options))
    return read(folder / "prompts.jsonl")


def answer(prompt):
    """A teacher's answer to a prompt."""
    outcome = {"sample": 0, "raw_output": "It rises.", "usable": True, "problem": None, "finish_reason": "stop"}
    return prompt | outcome


# ---- What is accepted ----


@pytest.mark.parametrize(
    "messages",
    [
        [S, U, A, U],
        [S, U, A, U, A, A],
        [S, U, call("x"), say("tool", ""), say("tool", "2"), A, U, A],
        [S, U, call("x"), say("tool", "1"), call("y"), say("tool", "2")],
        [S, U, call("x") | {"content": None}, say("tool", "1"), A],
    ],
)
def test_good_conversations(messages):
    assert check_record({"messages": messages, "tools": [PRICE], "teacher_prompt": None}, "raw.jsonl", 1) == []


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([U, S, A], "system, user, then assistant turns"),
        ([S, A, U], "user after a message of system (messages[1])"),
        ([S, U, U, A], "assistant after a message of user (messages[2])"),
        ([S, U, A, A, U], "user after a message of assistant (messages[3])"),
        ([S, U, A, say("tool", "1")], "user after a message of assistant (messages[3])"),
        ([S, U, call("x"), A, U], "tool after an assistant's tool calls (messages[3])"),
        ([S, U, call("x"), say("tool", "1"), U], "tool or assistant after a message of tool (messages[4])"),
    ],
)
def test_a_wrong_order_names_the_first_wrong_message(messages, expected):
    (problem,) = check_record({"messages": messages}, "raw.jsonl", 3)
    assert problem.startswith(f"raw.jsonl:3: messages: expected {expected}, found [")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tools": "x"}, "tools: expected a list of JSON schemas, objects with function.name, found 'x'"),
        ({"tools": [{"name": "x"}]}, "tools: expected a list of JSON schemas"),
        ({"teacher_prompt": " "}, "teacher_prompt: expected text that is not blank, found ' '"),
        ({"teacher_prompt": 3}, "teacher_prompt: expected text that is not blank, found 3"),
        ({"messages": [S, say("user", " "), A]}, "messages: expected a user message that is not blank, found ' '"),
        ({"messages": [S, U, A | {"tool_calls": [{}]}]}, "messages[2].tool_calls: expected a list of objects"),
        ({"messages": [S, U, A | {"tool_calls": "x"}]}, "messages[2].tool_calls: expected a list of objects"),
        ({"messages": [S, U, {"role": "assistant", "content": None}]}, "messages[2].content: expected text, found"),
        ({"messages": [S, U | {"tool_calls": [{}]}]}, "messages[1].tool_calls: expected none in a message of user"),
        *(
            (
                {"messages": [S, U, A | {"tool_calls": [{"function": {"name": "f", "arguments": text}}]}]},
                "messages[2].tool_calls: expected a list of objects",
            )
            for text in ("[1]", "{", '{"a": NaN}', r'{"a": "\ud83d"}', 3)
        ),
    ],
)
def test_malformed_tools_and_texts_are_named(change, said):
    (problem,) = check_record(make_conversation() | change, "raw.jsonl", 7)
    assert problem.startswith(f"raw.jsonl:7: {said}")


def test_arguments_in_a_string_are_read_as_an_object():
    record = make_conversation()
    as_text = json.loads(json.dumps(record))
    as_text["messages"][4]["tool_calls"][0]["function"]["arguments"] = '{"share": "JORVR"}'
    assert get_fields(as_text) == get_fields(record)
    assert get_fields_uid(get_fields(as_text)) == get_fields_uid(get_fields(record))


# ---- What is asked ----


def test_the_turns_before_the_last_answer_are_asked():
    record = make_conversation()
    asked = read_conversation(get_fields(record))
    assert (asked.system, asked.tools) == ("You are a manager.", [PRICE])
    assert list(asked.turns) == record["messages"][1:-1]
    assert not asked.is_plain
    assert asked.has_tools
    assert get_fields(record)["prompt"] == "0.5"


def test_the_teacher_alone_sees_its_text():
    fields = get_fields(make_chat(teacher_prompt="Think of risk."))
    own, teachers = read_conversation(fields), read_teacher_conversation(fields)
    assert own.system == "You are a manager."
    assert teachers == own._replace(system="Think of risk.\n\nYou are a manager.")


def test_each_answer_is_a_target_with_the_turns_before_it(tmp_path):
    record = make_conversation()
    first, second, third = run_prompts(tmp_path, [record], targets="all")
    (last,) = run_prompts(tmp_path, [record])
    assert third == last | {"id": 2}
    assert [one["prompt"] for one in (first, second, third)] == ["me=0: what do you hold", "What is its price?", "0.5"]
    assert "turns" not in first
    assert second["turns"] == record["messages"][1:4]
    assert third["turns"] == record["messages"][1:6]
    assert all(one["tools"] == [PRICE] for one in (first, second, third))
    assert len({one["uid"] for one in (first, second, third)}) == 3


def test_earlier_answers_that_are_not_meant_for_training_are_history_only(tmp_path):
    record = make_chat()
    record["messages"][2]["loss"] = False
    (only,) = run_prompts(tmp_path, [record], targets="all")
    assert only["turns"] == make_chat()["messages"][1:4]


def test_a_label_belongs_to_its_answer(tmp_path):
    first, second = '<answer>{"holding_log_delta": 0.25}</answer>', '<answer>{"holding_log_delta": 0.5}</answer>'
    messages = [S, U, say("assistant", first), say("user", "V"), say("assistant", second)]
    assert get_label({"messages": messages}, "sft", LABELS, LABELS[0]) == 0.5
    found = run_prompts(tmp_path, [{"messages": messages}], LABELS, LABELS[0], targets="all")
    assert [one["label"] for one in found] == [0.25, 0.5]
    found = run_prompts(tmp_path, [{"messages": messages, LABELS[0]: 2}], LABELS, None, targets="all")
    assert [one["label"] for one in found] == [None, 2.0]


def test_turns_that_conversations_have_in_common_are_asked_once(tmp_path, caplog):
    caplog.set_level("INFO")
    one, other = make_chat(), make_chat()
    other["messages"][3]["content"] = "Why?"
    found = run_prompts(tmp_path, [one, other], targets="all")
    assert [prompt["prompt"] for prompt in found] == ["me=0: what do you hold", "What is its price?", "Why?"]
    assert [prompt["id"] for prompt in found] == [0, 1, 2]
    assert "1 turns are asked for once" in caplog.text


def test_a_configured_text_is_for_records_without_their_own(tmp_path):
    records = [{"messages": [S, U, A]}, {"messages": [S, say("user", "V"), A], "teacher_prompt": "Own."}]
    found = run_prompts(tmp_path, records, teacher_prompt="Think.")
    assert [one["teacher_prompt"] for one in found] == ["Think.", "Own."]
    argv = ["--mix", tmp_path / "mix.jsonl", "--teacher-prompt", "Think.", "--out", tmp_path / "out.jsonl"]
    script.main(list(map(str, argv)))
    assert read(tmp_path / "out.jsonl") == found


# ---- What identifies it ----


def test_records_of_a_single_turn_are_what_they_were(tmp_path):
    """Other identifiers would invalidate cached answers and splits, other fields what is made from them."""
    record = {"messages": [say("system", "You are a manager."), say("user", "me=1 ↓"), say("assistant", "a")]}
    uid = "a1c71e45ca33a7f409093a245e7be86e"
    wanted = {"id": 0, "uid": uid, "system": "You are a manager.", "prompt": "me=1 ↓", "label": None, "origin": "sft"}
    for options in ({}, {"targets": "all"}):
        assert run_prompts(tmp_path, [record], **options) == [wanted]
        assert (tmp_path / "prompts.jsonl").read_text() == json.dumps(wanted, ensure_ascii=False) + "\n"
    assert get_split_key(wanted) == uid


def test_all_that_is_asked_counts_in_the_uid_of_a_conversation():
    plain, record = make_chat(), make_conversation()
    other_tools = make_conversation() | {"tools": []}
    other_answer = json.loads(json.dumps(plain))
    other_answer["messages"][-1]["content"] = "another"
    uids = [get_fields_uid(get_fields(one)) for one in (plain, record, other_tools, plain | {"teacher_prompt": "x"})]
    assert len(set(uids)) == 4
    assert get_fields_uid(get_fields(other_answer)) == uids[0]
    assert get_fields_uid(get_fields(plain | {"mgrno": 3})) == uids[0]


def test_the_uid_of_a_conversation_stays_what_it_is():
    fields = get_fields(make_chat())
    content = json.dumps({**fields}, ensure_ascii=False, sort_keys=True)
    assert get_fields_uid(fields) == hashlib.sha256(f"\x1f{content}".encode()).hexdigest()[:32]
    assert get_fields_uid(fields) == "1f9809071212470920941ac1c588d276"


# ---- Splits ----


def test_all_turns_of_a_conversation_are_in_one_split(tmp_path):
    found = run_prompts(tmp_path, [make_conversation(number) for number in range(60)], targets="all")
    # The same opening without a history, and with a text that the teacher alone sees.
    for record in ({"messages": make_chat(7)["messages"][:2]}, make_chat(7, teacher_prompt="Think.")):
        fields = get_fields(record)
        others = {"id": len(found), "uid": get_fields_uid(fields), "label": None, "origin": "sft"}
        found.append(others | fields)
    write_jsonl(tmp_path / "answers.jsonl", map(answer, found))
    split_answers(tmp_path / "answers.jsonl", Fraction("0.2"), Fraction("0.2"), 42, tmp_path / "out")
    places = {}
    for name in SPLITS:
        records = read_split(tmp_path / "out", name)
        assert len(records) > 10
        for record in records:
            places.setdefault(record["messages"][1]["content"], []).append(name)
    assert [len(names) for names in places.values()].count(3) == 59
    assert len(places["me=7: what do you hold"]) == 5
    assert all(len(set(names)) == 1 for names in places.values())


def test_a_changed_text_of_the_teacher_moves_no_record(tmp_path):
    keys = [get_split_key(one) for one in run_prompts(tmp_path, [make_chat(n) for n in range(9)])]
    uids = set()
    for text in ("One.", "Two."):
        found = run_prompts(tmp_path, [make_chat(n) for n in range(9)], teacher_prompt=text)
        assert [get_split_key(one) for one in found] == keys
        uids |= {one["uid"] for one in found}
    assert len(uids) == 18
    assert keys == [get_uid("You are a manager.", f"me={n}: what do you hold") for n in range(9)]


def test_a_split_holds_the_whole_conversation(tmp_path):
    record = make_conversation(teacher_prompt="Think.")
    prompts = run_prompts(tmp_path, [record, *({"messages": [S, say("user", str(n)), A]} for n in range(40))])
    write_jsonl(tmp_path / "answers.jsonl", map(answer, prompts))
    split_answers(tmp_path / "answers.jsonl", Fraction(0), Fraction("0.3"), 42, tmp_path / "out")
    (chat,) = [one for name in SPLITS for one in read_split(tmp_path / "out", name) if "tools" in one]
    assert chat["messages"] == [*record["messages"][:-1], say("assistant", "It rises.")]
    assert (chat["tools"], chat["teacher_prompt"]) == ([PRICE], "Think.")
    assert read_chat(chat) == (get_fields(record), "It rises.")
    lines = [line for name in SPLITS for line in (tmp_path / f"out/{name}.source").read_text().splitlines()]
    assert (
        r"You are a manager.\n\nuser: me=0: what do you hold\n\nassistant: JORVR 0\n\nuser: What is its price?\n\n"
        r'assistant: {"name": "get_price", "arguments": {"share": "JORVR"}}\n\ntool: 0.5'
    ) in lines


def test_turns_as_text():
    assert format_turns({"system": "S", "prompt": "U"}) == "U"
    assert format_turns(get_fields(make_chat())).endswith("assistant: JORVR 0\n\nuser: What is its price?")
