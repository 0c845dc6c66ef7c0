"""Prompts: their fields, their labels, and that a placeholder never becomes a label."""

import json
import logging

import pytest

import make_prompts as script
from distill.common.errors import InputError
from distill.common.files import read_jsonl, write_jsonl
from distill.records.prompts import make_prompts
from distill.records.raw_records import get_uid

PLACEHOLDER = '<think>\n[reason here]\n</think>\n<answer>\n{"holding_log_delta": 0.0}\n</answer>'
KEY = "holding_log_delta"


def make_mixed(origin: str, user: str, answer: str | None = None, **fields) -> dict:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": user}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer, "loss": origin == "sft"})
    return {"messages": messages, "origin": origin, "uid": get_uid("S", user), **fields}


def test_prompts_and_labels(tmp_path, caplog):
    records = [
        make_mixed("grpo", "a", PLACEHOLDER, holding_log_delta=0.5),
        make_mixed("grpo", "b", PLACEHOLDER),
        make_mixed("sft", "c", '<think>x</think><answer>{"holding_log_delta": −0.1}</answer>'),
        make_mixed("sft", "d", '<answer>{"holding_log_delta": 1}</answer>', label_delta=2, mgrno=7),
        make_mixed("sft", "e\n↓", "no answer"),
    ]
    write_jsonl(tmp_path / "mix.jsonl", records)
    with caplog.at_level(logging.INFO):
        assert make_prompts(tmp_path / "mix.jsonl", [KEY, "label_delta"], KEY, tmp_path / "prompts.jsonl") == 5
    prompts = [prompt for _, prompt in read_jsonl(tmp_path / "prompts.jsonl")]
    assert prompts[0] == {
        "id": 0, "uid": get_uid("S", "a"), "system": "S", "prompt": "a", "label": 0.5, "origin": "grpo"
    }  # fmt: skip
    assert [prompt["id"] for prompt in prompts] == list(range(5))
    assert [prompt["label"] for prompt in prompts] == [0.5, None, -0.1, 2.0, None]
    assert [prompt["prompt"] for prompt in prompts] == ["a", "b", "c", "d", "e\n↓"]
    assert "5 prompts = 3 with a label + 2 without" in caplog.text
    assert "reason here" not in (tmp_path / "prompts.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"origin": "web"}, "origin: expected grpo | sft | alpaca, found 'web'"),
        ({"uid": "0" * 32}, "(hash of the prompt), found '00"),
        ({"messages": []}, "messages: expected one system message"),
        ({KEY: "x"}, "holding_log_delta: expected a finite number, found 'x'"),
    ],
)
def test_malformed_mixed_records_are_rejected(tmp_path, change, said):
    write_jsonl(tmp_path / "mix.jsonl", [make_mixed("grpo", "a"), {**make_mixed("grpo", "b"), **change}])
    with pytest.raises(InputError) as error:
        make_prompts(tmp_path / "mix.jsonl", [KEY], KEY, tmp_path / "prompts.jsonl")
    assert "mix.jsonl:2: " in str(error.value)
    assert said in str(error.value)
    assert not (tmp_path / "prompts.jsonl").exists()


def test_empty_file(tmp_path):
    (tmp_path / "mix.jsonl").touch()
    with pytest.raises(InputError, match=r"mix.jsonl:1: file: expected at least one record"):
        make_prompts(tmp_path / "mix.jsonl", [], None, tmp_path / "prompts.jsonl")
    assert not (tmp_path / "prompts.jsonl").exists()


@pytest.mark.parametrize(("argv", "label"), [(["--answer-key", KEY], 0.25), (["--answer-key", ""], None), ([], None)])
def test_script(tmp_path, argv, label):
    write_jsonl(tmp_path / "mix.jsonl", [make_mixed("sft", "a", '<answer>{"holding_log_delta": 0.25}</answer>')])
    script.main(["--mix", str(tmp_path / "mix.jsonl"), "--out", str(tmp_path / "out.jsonl"), *argv])
    assert json.loads((tmp_path / "out.jsonl").read_text())["label"] == label
