"""Questions in Alpaca format through the workflow: no mix, original answers beside the teacher's."""

import json

import pytest
from running import CONFIG, read_lines

NOUNS = ("水", "山", "灯", "舟", "月", "风", "石", "雨", "花", "镜", "路", "钟")
VERBS = ("是什么", "从何而来", "有何用处", "如何描述")
STUDENT = CONFIG["students"]["student_seqkd"]


def write_questions(path, count):
    """Synthetic ones, in Chinese."""
    path.parent.mkdir(parents=True, exist_ok=True)
    questions = [
        {"instruction": f"{noun}{verb}？", "input": "", "output": f"{noun}的答案是第{n}条。"}
        for n, (noun, verb) in enumerate((noun, verb) for noun in NOUNS for verb in VERBS)
    ]
    path.write_text(json.dumps(questions[:count], ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def asked(fresh, tmp_path_factory):
    """The splits of two categories, and a student of one."""
    directory = fresh.copy(tmp_path_factory.mktemp("asked") / "run")
    for category, count in (("short", 24), ("long", 48)):
        write_questions(directory / f"data/{category}.json", count)
    directory.configure(
        {name: value for name, value in CONFIG.items() if name != "mix"}
        | {
            "categories": ["short", "long", "missing"],
            "source": {"format": "alpaca", "path": "data/{category}.json", "system": "请简短回答。"},
            "mix_targets": {"teacher": 0.5, "original": 0.5},
            "answer": None,
            "teacher": CONFIG["teacher"] | {"adapter": None},
            "students": {"qa": STUDENT},
        }
    )
    directory.output = directory.run("output/qa/short/model.safetensors")
    return directory


def test_every_question_is_asked(asked):
    assert "missing: data/missing.json not found" in asked.output
    outputs = read_lines(asked / "artifacts/distill_data/raw/teacher_outputs_short.jsonl")
    assert len(outputs) == 24
    assert {one["system"] for one in outputs} == {"请简短回答。"}
    assert outputs[0]["original_output"] == "水的答案是第0条。"


def test_targets_are_mixed_and_told(asked):
    folder = asked / "artifacts/distill_data/processed/short"
    train = read_lines(folder / "train.jsonl")
    assert {one["target"] for one in train} == {"teacher", "original"}
    targets = (folder / "train.target").read_text(encoding="utf-8").splitlines()
    for record, line in zip(train, targets, strict=True):
        if record["target"] == "original":
            assert line == record["original_output"]
    assert {one["target"] for one in read_lines(folder / "test.jsonl")} == {"teacher"}
    assert (asked / "output/qa/short/model.safetensors").exists()


def test_a_plan_of_all_has_a_reading_in_place_of_the_mix(asked):
    rules = [rule for rule, _ in asked.planned()]
    assert "mix_records" not in rules
    assert ("read_alpaca", "long") in asked.planned()
    assert ("read_alpaca", "short") not in asked.planned()


def test_a_broken_file_names_the_record(asked, tmp_path):
    copy = asked.copy(tmp_path / "copy")
    path = copy / "data/long.json"
    questions = json.loads(path.read_text(encoding="utf-8"))
    del questions[4]["output"]
    path.write_text(json.dumps(questions))
    output = copy.run("artifacts/distill_data/raw/train_mix_long.jsonl", check=False)
    assert "data/long.json:record 5: output: expected text, found 'nothing'" in output
