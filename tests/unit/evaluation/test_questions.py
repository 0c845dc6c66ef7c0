"""The example questions: well-formed, distinct, and in the language that their file names."""

import json
import re
from collections import Counter

import pytest
from reading import read_alpaca
from running import ROOT

from distill.common.files import read_jsonl
from distill.evaluation.sacrebleu_metrics import HAN

FOLDER = ROOT / "examples/questions"
FEWEST = {"english": 240, "chinese": 72}
LONGEST = {"english": 160, "chinese": 60}  # characters of an answer


@pytest.fixture(params=FEWEST)
def name(request):
    return request.param


@pytest.fixture
def questions(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def simplify(text):
    return re.sub(r"\W+", " ", text).strip().lower()


def test_the_workflow_takes_all_of_them(name, questions, tmp_path):
    assert read_alpaca(name, FOLDER / f"{name}.json", "Answer.", tmp_path / "out.jsonl") == len(questions)
    assert len(questions) >= FEWEST[name]
    records = [record for _, record in read_jsonl(tmp_path / "out.jsonl")]
    assert len({record["uid"] for record in records}) == len(questions)
    assert all(record["original_output"] for record in records)
    assert any(question["input"] for question in questions)


def test_no_two_are_alike(questions):
    asked = Counter(simplify(f"{question['instruction']} {question['input']}") for question in questions)
    answered = Counter(simplify(question["output"]) for question in questions)
    assert [text for text, count in (asked + answered).items() if count > 1] == []


def test_texts_are_clean_and_answers_short(name, questions):
    for question in questions:
        assert set(question) == {"instruction", "input", "output"}
        assert all(text == text.strip() and "\n" not in text for text in question.values()), question
        assert len(question["instruction"]) <= 120, question
        assert 0 < len(question["output"]) <= LONGEST[name], question


def test_each_file_is_in_its_language(name, questions):
    for question in questions:
        text = re.sub(r"[\W\d]+", "", "".join(question.values()))
        assert len(HAN.findall(text)) == (len(text) if name == "chinese" else 0), question


def test_their_readme_counts_them(name, questions):
    (count,) = re.findall(rf"`{name}\.json` \| (\d+) \|", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert int(count) == len(questions)
