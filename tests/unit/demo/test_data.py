"""The demo's records have the format of real files, are reproducible, and can be learned."""

import json
import math
import os
import re
import statistics

import pytest

import make_demo_data
from distill.common.errors import InputError
from distill.common.files import read_jsonl
from distill.demo.data import ANSWER_NOISE, CATEGORIES, NOISE, SIDES, make_record, write_demo_data
from distill.records.answer_format import parse_answer
from distill.records.raw_records import check_record, get_answer_text, get_label, get_texts, get_uid

KEY = "holding_log_delta"
LABEL_FIELDS = ["holding_log_delta", "label_log_delta", "label_delta"]
KINDS = ["grpo", "sft"]


def stated_change(record):
    return float(re.search(r"d_me=(-?[0-9.]+)", get_texts(record)[1])[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_records_are_well_formed_and_labelled(category, kind):
    records = [make_record(category, kind, number, 42) for number in range(50)]
    for record in records:
        assert check_record(record, "file", 1) == []
        label = get_label(record, kind, LABEL_FIELDS, KEY)
        assert label is not None
        assert math.isfinite(label)
    assert len({get_uid(*get_texts(record)) for record in records}) == 50


@pytest.mark.parametrize("category", CATEGORIES)
def test_grpo_answer_is_a_placeholder_and_sft_answer_is_usable(category):
    for number in range(20):
        grpo, sft = (make_record(category, kind, number, 42) for kind in KINDS)
        assert [message["role"] for message in grpo["messages"]] == ["system", "user", "assistant"]
        assert grpo["messages"][-1]["loss"] is False
        assert get_answer_text(grpo) == ""
        assert "<profile_context>" in get_texts(grpo)[1]
        assert sft["messages"][-1]["loss"] is True
        answer = parse_answer(get_answer_text(sft), KEY)
        assert answer.problem is None
        assert f"d_me={stated_change(sft):.2f}" in answer.think


@pytest.mark.parametrize("category", CATEGORIES)
def test_sft_answers_state_the_change_with_noise(category):
    records = [make_record(category, "sft", number, 7) for number in range(400)]
    answers = [parse_answer(get_answer_text(record), KEY).value for record in records]
    errors = [one - SIDES[category] * stated_change(record) for one, record in zip(answers, records, strict=True)]
    assert abs(statistics.mean(errors)) < 4 * ANSWER_NOISE / math.sqrt(400)
    assert statistics.stdev(errors) == pytest.approx(ANSWER_NOISE, rel=0.2)
    assert 0 not in answers


@pytest.mark.parametrize("category", CATEGORIES)
def test_label_is_the_stated_change_on_the_categorys_side_plus_noise(category):
    records = [make_record(category, "grpo", number, 7) for number in range(400)]
    errors = [get_label(r, "grpo", LABEL_FIELDS, KEY) - SIDES[category] * stated_change(r) for r in records]
    assert abs(statistics.mean(errors)) < 4 * NOISE / math.sqrt(400)
    assert statistics.stdev(errors) == pytest.approx(NOISE, rel=0.2)
    assert statistics.stdev(map(stated_change, records)) > 5 * NOISE


def test_holding_at_t1_agrees_with_the_label():
    record = make_record("banks", "grpo", 0, 42)
    assert math.log(record["label_tp1"] / record["holding_t"]) == pytest.approx(record["holding_log_delta"])


def test_field_sets_differ_between_and_within_categories():
    def fields(category, kind, number):
        return set(make_record(category, kind, number, 42)) - {"messages"}

    assert fields("households", "grpo", 1) & set(LABEL_FIELDS) == {"label_log_delta"}
    assert "holding_log_delta" in fields("banks", "grpo", 1)
    assert fields("banks", "grpo", 0) != fields("banks", "grpo", 1)
    assert fields("banks", "sft", 0) == set()
    assert "holding_log_delta" in fields("mutual_funds", "sft", 0)


def test_texts_contain_unusual_characters():
    texts = "".join(m["content"] for n in range(100) for k in KINDS for m in make_record("banks", k, n, 42)["messages"])
    assert all(part in texts for part in ["’", "↑", "↓", "→", "=NA", '"Q"', "“E”", "\n"])


def test_some_sft_prompts_have_the_profile_of_grpo_prompts():
    with_profile = ["<profile_context>" in get_texts(make_record("banks", "sft", n, 42))[1] for n in range(100)]
    assert 30 < sum(with_profile) < 70


def test_same_seed_same_bytes_and_no_other_record_matters(tmp_path):
    few, many, other = tmp_path / "few", tmp_path / "many", tmp_path / "other"
    write_demo_data(few, ["banks", "other"], [], 5, 4, 42)
    write_demo_data(many, ["other", "banks", "households"], [], 9, 9, 42)
    write_demo_data(other, ["banks"], [], 5, 4, 43)
    for path in ("grpo/grpo_banks.jsonl", "sft/sft_train_other.jsonl"):
        content = (few / "artifacts" / path).read_bytes()
        assert (many / "artifacts" / path).read_bytes().startswith(content)
    grpo = "artifacts/grpo/grpo_banks.jsonl"
    assert (few / grpo).read_bytes() != (other / grpo).read_bytes()


def test_script_writes_the_files_and_keeps_those_that_are_up_to_date(tmp_path):
    arguments = ["--out", str(tmp_path), "--grpo", "6", "--sft", "5"]
    make_demo_data.main(arguments)
    files = sorted(path.relative_to(tmp_path / "artifacts").as_posix() for path in tmp_path.rglob("*.jsonl"))
    categories = ["banks", "households", "mutual_funds", "pension_funds"]
    expected = [f"grpo/grpo_{name}.jsonl" for name in categories]
    assert files == expected + [f"sft/sft_train_{name}.jsonl" for name in categories[:-1]]
    right, wrong = (tmp_path / "artifacts" / file for file in files[:2])
    assert len(list(read_jsonl(right))) == 6
    before = wrong.read_bytes()
    for path in (right, wrong):
        os.utime(path, (1, 1))
    wrong.write_text(json.dumps({"messages": []}) + "\n")
    make_demo_data.main(arguments)
    assert right.stat().st_mtime == 1
    assert wrong.read_bytes() == before


def test_unknown_category_and_no_records_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected categories among banks, households.* found hedge_funds"):
        write_demo_data(tmp_path, ["banks", "hedge_funds"], [], 5, 5, 42)
    with pytest.raises(InputError, match="at least 1 record"):
        write_demo_data(tmp_path, ["banks"], [], 0, 5, 42)
    assert list(tmp_path.iterdir()) == []
