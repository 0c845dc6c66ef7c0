"""Student and teacher with different prompts or ends of turn are told of, with both texts."""

import re

import pytest
from tiny import CHATML, build_tokenizer
from training_runs import log_lines, train_student

import compute_signal as signal_script
from distill.common.errors import InputError
from distill.models.chat import ChatTemplate
from distill.models.examples import encode_examples
from distill.student.template_check import AFTER, BEFORE, compare_templates, cut_at_difference, read_prompts
from distill.teacher.compute_signal import compute_signal

BRACKETS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|endoftext|>{% endfor %}[assistant] "
OPENED = CHATML.replace("assistant\\n", "assistant\\n<think>\\n")
NOTE = CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{% if 'change' in m['content'] %} Think.{% endif %}")
PROMPTS = (
    "different prompts in all training records. Where those of the first one differ, the student reads "
    "'<|im_start|>system\\nYou are a manager.<|im_end|>\\n<|im_start|>user\\nme=0: estimate<…' and the teacher "
    "'[system] You are a manager.<|endoftext|>[user] me=0: estimate<|endoftext|>[assis…'."
)
ENDS = "ends an answer with the token '<|im_end|>' (2), the teacher with '<|endoftext|>' (0)."


def compare(records, teacher, student=CHATML):
    chats = [ChatTemplate(build_tokenizer(template=template)) for template in (student, teacher)]
    examples = encode_examples(records, *chats, 1000, vocabulary=320)
    return compare_templates(examples, *chats)


@pytest.fixture
def cached(tmp_path, models):
    """Changes of the options for a teacher whose signal is cached."""

    def make(kind, records):
        argv = ["--data", "unused", "--kind", kind, "--out", str(tmp_path / "signal"), "--model", models["teacher"]]
        argv += ["--examples", str(tmp_path / "examples")]
        argv += ["--dtype", "float32", "--device", "cpu"]
        argv += ["--top-k", "8", "--temperatures", "2.0"] if kind == "topk" else []
        compute_signal(vars(signal_script.parse_args(argv)), records, [])
        return {"signal": kind, "top_k": 8 if kind == "topk" else None, "signal_folders": [tmp_path / "signal"]}

    return make


@pytest.fixture
def set_template(models):
    """Give the teacher another chat template."""

    def change(template):
        build_tokenizer(template=template).save_pretrained(models["teacher"])

    return change


def test_other_prompts_and_ends_are_told_of_in_log_training_log_and_card(options, records, set_template, caplog):
    set_template(BRACKETS)
    run = options()
    train_student(run, records, [])
    (told,) = [record for record in caplog.records if record.name == "distill.student.template_check"]
    assert PROMPTS in told.getMessage()
    assert ENDS in told.getMessage()
    first, *others = log_lines(run)
    assert [text in warning for text, warning in zip((PROMPTS, ENDS), first["warnings"], strict=True)] == [True, True]
    assert not any("warnings" in line for line in others)
    card = (run.out / "README.md").read_text()
    assert "## Warnings\n\n- Student and teacher read different prompts in all" in card
    assert "'&lt;|im_end|&gt;' (2)" in card


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_other_prompts_of_a_cached_signal_are_told_of(options, records, cached, set_template, caplog, kind):
    set_template(NOTE)
    run = options(**cached(kind, records))
    train_student(run, records, [])
    assert "the teacher '… estimate the change Think.<|im_end|>" in caplog.text
    assert len(log_lines(run)[0]["warnings"]) == 1


def test_a_cached_signal_with_other_ends_is_refused(options, records, cached, set_template):
    set_template(BRACKETS)
    with pytest.raises(InputError, match=re.escape(f"signal topk: The student {ENDS}")):
        train_student(options(**cached("topk", records)), records, [])


def test_the_same_template_is_no_warning(options, records, caplog):
    run = options()
    train_student(run, records, [])
    assert "chat template" not in caplog.text
    assert not any("warnings" in line for line in log_lines(run))
    assert "Warnings" not in (run.out / "README.md").read_text()


def test_prompts_that_differ_in_some_records_are_counted(records, caplog):
    (warning,) = compare(records, NOTE)
    changed = sum("change" in record["messages"][1]["content"] for record in records)
    assert 0 < changed < len(records)
    assert f"different prompts in {changed} of {len(records)} training records" in warning
    assert "'… estimate the change<|im_end|>\\n<|im_start|>assistant\\n'" in warning
    assert "'… estimate the change Think.<|im_end|>\\n<|im_start|>assistant\\n'" in warning


@pytest.mark.parametrize("pair", [(CHATML, OPENED), (OPENED, CHATML), (CHATML, CHATML)])
def test_what_one_template_opens_for_the_answer_stands_in_both_prompts(records, caplog, pair):
    assert compare(records, *pair) == []
    assert "chat templates of student and teacher" not in caplog.text


def test_the_first_rank_alone_logs_what_all_find(records, caplog, monkeypatch):
    found = compare(records, BRACKETS)
    assert caplog.text.count("chat templates of student and teacher differ") == 1
    monkeypatch.setenv("RANK", "1")
    assert compare(records, BRACKETS) == found
    assert caplog.text.count("chat templates of student and teacher differ") == 1


def test_a_text_that_is_tokenized_differently_is_shown_by_its_tokens(tokenizer):
    whole, parts = tokenizer("estimate")["input_ids"], [tokenizer(letter)["input_ids"][0] for letter in "estimate"]
    assert len(whole) < len(parts)
    found = read_prompts({"prompt": whole, "teacher_prompt": parts}, tokenizer, tokenizer)
    assert found == [" ".join(tokenizer.convert_ids_to_tokens(whole)), "e s t i m a t e"]


def test_long_texts_are_cut_around_the_difference():
    first, second = cut_at_difference("a" * 500 + "b" + "c" * 500, "a" * 500 + "d")
    assert first == "…" + "a" * BEFORE + "b" + "c" * (AFTER - 1) + "…"
    assert second == "…" + "a" * BEFORE + "d"
