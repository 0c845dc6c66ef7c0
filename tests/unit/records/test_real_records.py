"""Real records, if they are next to the repository: exact counts, and no placeholder becomes a label."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from distill.common.files import read_jsonl
from distill.records.answer_format import parse_answer
from distill.records.mix import Labels, Source, mix_records
from distill.records.prompts import make_prompts

HOLDINGS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "holdings"
KEY = "holding_log_delta"
FIELDS = [KEY, "label_log_delta", "label_delta"]

pytestmark = pytest.mark.skipif(not HOLDINGS.is_dir(), reason="real records are not available")


@pytest.fixture(scope="module", params=["banks", "mutual_funds"])
def category(request, tmp_path_factory):
    """Return a category's raw records by (system, user), counts taken, mixed records and prompts."""
    folder = tmp_path_factory.mktemp(request.param)
    grpo, sft = HOLDINGS / f"grpo/grpo_{request.param}.jsonl", HOLDINGS / f"sft/sft_train_{request.param}.jsonl"
    sources = [Source("grpo", grpo, Fraction("0.7")), Source("sft", sft, Fraction("0.3"))]
    taken = mix_records(request.param, sources, 42, Labels(FIELDS, KEY), folder / "mix.jsonl")
    make_prompts(folder / "mix.jsonl", FIELDS, KEY, folder / "prompts.jsonl")
    raw = {tuple(m["content"] for m in r["messages"][:2]): r for path in (grpo, sft) for _, r in read_jsonl(path)}
    mixed, prompts = ([record for _, record in read_jsonl(folder / f"{name}.jsonl")] for name in ("mix", "prompts"))
    return raw, taken, mixed, prompts


def test_counts(category):
    _, taken, mixed, prompts = category
    assert taken == {"grpo": 140, "sft": 60}
    assert [record["origin"] for record in mixed] == ["grpo"] * 140 + ["sft"] * 60
    assert len(prompts) == len({prompt["uid"] for prompt in prompts}) == 200


def test_labels_are_the_fields_or_the_sft_answers(category):
    raw, _, _, prompts = category
    for prompt in prompts:
        record = raw[prompt["system"], prompt["prompt"]]
        answer = record["messages"][2]["content"].split("<answer>")[1].split("</answer>")[0]
        true = record[KEY] if prompt["origin"] == "grpo" else json.loads(answer)[KEY]
        assert prompt["label"] == true
    assert sum(prompt["label"] == 0 for prompt in prompts if prompt["origin"] == "grpo") < 20  # placeholders are all 0


def test_prompts_hold_no_assistant_text(category):
    for prompt in category[3]:
        assert "[Using the investor profile" not in json.dumps(prompt)


def test_real_teacher_answers_are_parsed():
    lines = (HOLDINGS / "teacher_7b" / "train.target").read_text(encoding="utf-8").splitlines()
    found = [parse_answer(line, KEY) for line in lines]
    assert len(found) == 300
    assert [answer.problem for answer in found] == [None] * 300
    assert all(answer.think for answer in found)
