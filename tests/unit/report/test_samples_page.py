"""The page of samples: prompts with the reference and each student's answers over the steps, texts as data."""

import json
import re

import pytest
from html_pages import HOSTILE, Page

import render_samples
from distill.common.errors import InputError


def make_record(uid, **changes):
    roles = ("system", "user", "assistant")
    messages = [{"role": role, "content": changes.pop(role, f"{role} {uid}")} for role in roles]
    return {"uid": uid, "finish_reason": "stop", "messages": messages} | changes


def make_samples(student, uids=("a", "b"), steps=(10, 1200), **changes):
    return [
        {"step": step, "uid": uid, "text": f"{student} {uid} {step}", "finished": True, "tokens": 5} | changes
        for step in steps
        for uid in uids
    ]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def render(folder, samples, records=None):
    """The page's text; `samples` by student and category."""
    records = records or [make_record("a"), make_record("b")]
    paths = [write(folder / student / category / "samples.jsonl", one) for (student, category), one in samples.items()]
    splits = [write(folder / "val.jsonl", records)]
    render_samples.main(["--samples", *paths, "--splits", *splits, "--out", str(folder / "page.html")])
    return (folder / "page.html").read_text(encoding="utf-8")


def test_a_prompt_has_the_reference_and_the_answers_of_each_student_over_the_steps(tmp_path):
    samples = {("kd", "banks"): make_samples("kd"), ("seqkd", "banks"): make_samples("seqkd", steps=[10])}
    samples |= {("pooled", "all"): make_samples("pooled", ["b"]), ("silent", "banks"): []}
    page = Page(render(tmp_path, samples))
    assert page.get_texts("h2") == ["banks", "all"]
    assert page.get_texts("prompt") == ["user a", "user b", "user b"]
    tracks = [" ".join(text.split()) for text in page.get_texts("track")]
    assert tracks == [
        "reference assistant a",
        "kd step 10 5 tokens kd a 10 step 1,200 5 tokens kd a 1200",
        "seqkd step 10 5 tokens seqkd a 10",
        "reference assistant b",
        "kd step 10 5 tokens kd b 10 step 1,200 5 tokens kd b 1200",
        "seqkd step 10 5 tokens seqkd b 10",
        "reference assistant b",
        "pooled step 10 5 tokens pooled b 10 step 1,200 5 tokens pooled b 1200",
    ]
    assert not page.get_texts("warning")


def test_all_turns_of_a_conversation_are_shown(tmp_path):
    record = make_record("a")
    record["messages"][2:2] = [{"role": "assistant", "content": "Which?"}, {"role": "user", "content": "The first."}]
    page = Page(render(tmp_path, {("kd", "banks"): make_samples("kd", ["a"])}, [record]))
    (prompt,) = page.get_texts("prompt")
    assert prompt.split("\n\n") == ["user: user a", "assistant: Which?", "user: The first."]
    assert "reference assistant a" in [" ".join(text.split()) for text in page.get_texts("track")]


def test_answers_that_were_cut_off_are_marked(tmp_path):
    samples = {("kd", "banks"): make_samples("kd", ["a"], [10], finished=False, tokens=1)}
    page = Page(render(tmp_path, samples, [make_record("a", finish_reason="length")]))
    assert [" ".join(text.split()) for text in page.get_texts("facts")] == ["truncated", "step 10 1 token truncated"]


def test_texts_are_escaped_and_the_page_loads_nothing(tmp_path):
    hostile = {role: f"{HOSTILE} {role}" for role in ("system", "user", "assistant")}
    samples = {("kd", "banks"): make_samples("kd", ["a"], [10], text=f"{HOSTILE}\x00 {{{{ 7 * 7 }}}}")}
    text = render(tmp_path, samples, [make_record("a", **hostile)])
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("img", "script", "template", "iframe", "link", "object", "base")]
    assert page.get_texts("text") == [*hostile.values(), f"{HOSTILE}\ufffd {{{{ 7 * 7 }}}}"]
    assert not [tags for _, tags in page.tags if {"src", "style", "onclick", "action"} & set(tags)]
    (policy,) = [tags["content"] for _, tags in page.tags if tags.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"url\(|@import", text)


def test_without_samples_the_page_says_so(tmp_path):
    page = Page(render(tmp_path, {("kd", "banks"): []}))
    assert page.get_texts("about") == ["No student answered a validation prompt."]
    assert not page.get_texts("h2")


def test_broken_samples_and_unknown_prompts_are_refused(tmp_path):
    broken = make_samples("kd", ["a"], [10], finished="yes")
    with pytest.raises(InputError, match=r"kd/banks/samples.jsonl:1: finished: expected true or false"):
        render(tmp_path, {("kd", "banks"): broken})
    with pytest.raises(InputError, match="samples of banks: expected a uid of the validation splits, found z"):
        render(tmp_path, {("kd", "banks"): make_samples("kd", ["z"])})
