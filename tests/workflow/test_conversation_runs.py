"""Conversations with tools, and a text that the teacher alone sees, from raw records up to scored predictions."""

import json
import shutil

import pytest
from conversations import PRICE, make_conversation
from running import CONFIG, Directory, merge, read_lines
from tiny import CHATML, TOOLS, build_tokenizer, save_model

RAW = "artifacts/distill_data/raw"
SPLITS = "artifacts/distill_data/processed/banks"
STUDENT = CONFIG["students"]["student_kd"]
CHANGES = {
    "categories": ["banks"],
    "source": {"targets": "all", "teacher_prompt": "You know the {category}."},
    "mix": {"grpo_fraction": 0, "sft_fraction": 1},
    "teacher": {"adapter": None},
    "evaluation": {"metrics": ["bleu", "ppl"]},
}


def write_records(folder, records):
    (folder / "artifacts/sft").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "artifacts/sft/sft_train_banks.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Records and models of conversations, before any run."""
    folder = tmp_path_factory.mktemp("conversations") / "run"
    write_records(folder, [make_conversation(number) for number in range(16)])
    tokenizer = build_tokenizer([json.dumps(PRICE), "me=1: what do you hold"], template=TOOLS)
    for name, hidden, seed in (("teacher", 32, 1), ("student", 16, 2)):
        save_model(folder / "models" / name, tokenizer, vocabulary=352, hidden=hidden, seed=seed, scale=4.0)
    config = merge(CONFIG, CHANGES) | {"students": {"student_kd": STUDENT | {"signal": "hidden"}}}
    return Directory(folder, config)


def test_every_answer_of_a_conversation_is_a_prompt(directory, tmp_path):
    copy = directory.copy(tmp_path / "copy")
    copy.run(f"{RAW}/banks_teacher_prompts_base.jsonl")
    prompts = read_lines(copy / f"{RAW}/banks_teacher_prompts_base.jsonl")
    assert len(prompts) == len({one["uid"] for one in prompts}) == 3 * 16
    assert {one["teacher_prompt"] for one in prompts} == {"You know the banks."}
    assert [len(one.get("turns", [1])) for one in prompts[:3]] == [1, 3, 5]


@pytest.mark.slow
def test_a_student_learns_conversations(directory):
    predictions = "output/evaluation/student_kd/banks.predictions.jsonl"
    directory.run(predictions, "output/evaluation/teacher/banks.predictions.jsonl")
    records = [one for name in ("train", "val", "test") for one in read_lines(directory / f"{SPLITS}/{name}.jsonl")]
    assert len(records) == 3 * 16
    assert {len(one["messages"]) for one in records} == {3, 5, 7}
    index = json.loads((directory / "artifacts/distill_data/teacher_signal/banks/hidden/index.json").read_text())
    tests = read_lines(directory / f"{SPLITS}/test.jsonl")
    assert len(index["records"]) == len(records) - len(tests)
    log = read_lines(directory / "output/student_kd/banks/training_log.jsonl")
    assert log[0]["kd"] > 0
    assert "warnings" not in log[0]  # what the teacher alone sees is no difference of the templates
    assert len(read_lines(directory / predictions)) == len(tests)
    assert all(one["nll_tokens"] > 0 for one in read_lines(directory / predictions))


@pytest.mark.slow
def test_a_template_without_tools_stops_before_an_answer_is_generated(directory, tmp_path):
    copy = directory.copy(tmp_path / "copy")
    shutil.rmtree(copy / "artifacts/cache", ignore_errors=True)  # of another test
    (copy / "models/teacher/chat_template.jinja").write_text(CHATML)
    output = copy.run(f"{RAW}/teacher_outputs_banks.jsonl", check=False)
    assert "banks_teacher_prompts_base.jsonl: id 0 (uid " in output
    assert "expected a chat template that renders tools" in output
    assert not (copy / "artifacts/cache/teacher").exists()
