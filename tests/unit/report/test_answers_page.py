"""The page of answers side by side: its content, texts as data, and search in a browser."""

import json
import re
import shutil
import subprocess
from urllib.parse import quote

import pytest
from html_pages import HOSTILE, Page

import render_answers
from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.evaluation.record_choice import choose_records
from distill.report.answers_page import PARTS, guess_language, order_columns, show

MODELS = ("teacher", "kd", "kd_base", "kd_base_2")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_record(number, model="teacher", **changes):
    record = {
        "id": number,
        "uid": f"{number:032x}",
        "category": "sutras",
        "label": None,
        "system": "请简短回答。",
        "prompt": f"第{number}问：什么是空性？",
        "reference": f"参考答案{number}",
        "prediction": f"{model} 说 {number}",
        "parsed_value": None,
        "usable": True,
        "problem": None,
        "finish_reason": "stop",
        "generated_tokens": 5,
        "nll": 2.0,
        "nll_tokens": 4,
    }
    return record | changes


def write(folder, model, kind, records):
    path = folder / model / f"sutras.{kind}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def render(folder, tests, questions=None, most=200):
    """The page's text; `tests` and `questions` are records by model."""
    argv = ["--category", "sutras", "--page-records", str(most), "--out", str(folder / "page.html"), "--predictions"]
    argv += [write(folder, model, "predictions", records) for model, records in tests.items()]
    asked = [write(folder, model, "questions", records) for model, records in (questions or {}).items()]
    render_answers.main([*argv, "--questions", *asked])
    return (folder / "page.html").read_text(encoding="utf-8")


def make_tests(count=4, models=MODELS, **changes):
    return {model: [make_record(number, model, **changes) for number in range(count)] for model in models}


def test_questions_come_first_and_models_are_in_order(tmp_path):
    questions = {m: [make_record(9, m, prompt="问题一", prediction=f"{m} 的回答")] for m in MODELS}
    page = Page(render(tmp_path, make_tests(2), questions))
    assert page.get_texts("h2") == ["Fixed questions", "Test prompts"]
    assert page.get_texts("prompt") == ["问题一", "第0问：什么是空性？", "第1问：什么是空性？"]
    names = [text.split()[0] for text in page.get_texts("h4")]
    assert names[:4] == ["teacher", "kd_base", "kd", "kd_base_2"]
    assert names[4:9] == ["reference", "teacher", "kd_base", "kd", "kd_base_2"]
    models = [tags["data-model"] for _, tags in page.tags if "data-model" in tags]
    answers = [text for text in page.get_texts("text") if "说 0" in text or text == "参考答案0"]
    assert answers == ["参考答案0", *(f"{model} 说 0" for model in models[5:9])]
    assert [text for tag, _, text in page.texts if tag == "details" and text.startswith("system")] == [
        "system prompt请简短回答。"
    ] * 3
    assert {tags["lang"] for _, tags in page.tags if tags.get("class") == "text prompt"} == {"zh"}


def test_texts_are_escaped_and_complete(tmp_path):
    texts = {"prompt": f"{HOSTILE} p", "system": f"{HOSTILE} s", "reference": f"{HOSTILE} r", "problem": f"{HOSTILE} x"}
    odd = "\n  one\n\n\ttwo {{ 7 * 7 }} {% raw %} \u202e"
    tests = make_tests(1, usable=False, **texts)
    tests["kd"][0]["prediction"] = HOSTILE
    tests["kd_base"][0]["prediction"] = odd
    tests["kd_base_2"][0]["prediction"] = "a\x00b\x1bc"
    text = render(tmp_path, tests, {m: [make_record(7, m, prediction=HOSTILE)] for m in MODELS})
    page = Page(text)
    assert len(page.get_texts("script")) == len(page.get_texts("style")) == 1
    assert not [tag for tag, _ in page.tags if tag in ("img", "template", "iframe", "link", "object", "base")]
    assert page.get_texts("prompt")[1] == f"{HOSTILE} p"
    shown = page.get_texts("text")
    assert show("\ud800") == "\ufffd"  # a lone surrogate, which JSON allows and UTF-8 does not
    assert {f"{HOSTILE} s", f"{HOSTILE} r", HOSTILE, odd, "a\ufffdb\ufffdc"} <= set(shown)
    assert f"not usable: {HOSTILE} x" in page.get_texts("warning")


def test_the_page_loads_nothing(tmp_path):
    text = render(tmp_path, make_tests(2))
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", text)
    assert not [tags for _, tags in page.tags if {"src", "style", "onclick", "action"} & set(tags)]
    assert all(tags["href"].startswith("#") for _, tags in page.tags if "href" in tags)
    (policy,) = [tags["content"] for _, tags in page.tags if tags.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_facts_of_an_answer(tmp_path):
    tests = make_tests(1, label=0.25)
    tests["kd"][0] |= {"finish_reason": "length", "generated_tokens": 1234, "parsed_value": 0.5, "nll": 4.0}
    tests["kd_base"][0] |= {"usable": False, "problem": "no answer", "nll": 9000.0, "generated_tokens": 1}
    tests["kd_base_2"][0]["prediction"] = tests["kd_base_2"][0]["reference"]
    del tests["teacher"][0]["nll"], tests["teacher"][0]["nll_tokens"]  # a server gives no likelihoods
    facts = [" | ".join(part.split("  ")).strip() for part in Page(render(tmp_path, tests)).get_texts("facts")]
    assert facts == [
        "",
        "5 tokens",
        "not usable: no answer 1 token perplexity of the reference over 1e+299",
        "truncated 1,234 tokens value 0.5 perplexity of the reference 2.72",
        "5 tokens same as the reference perplexity of the reference 1.65",
    ]
    assert "true value 0.25" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_sample_is_stable_and_stated(tmp_path):
    few, many = (make_tests(count, ["teacher", "kd"]) for count in (1000, 1100))
    text = render(tmp_path, few, most=50)
    assert "50 of 1,000 test prompts, chosen by a hash" in " ".join(text.split())
    assert len(Page(text).get_texts("card")) == 50
    before, after = ({one["uid"] for one in choose_records(tests["kd"], 50)} for tests in (few, many))
    assert len(before & after) >= 40  # a hundred new records replace 4.5 on average
    assert before - after
    numbers = [one["id"] for one in choose_records(few["kd"], 50)]
    assert numbers == sorted(numbers)
    assert "Fixed questions" not in text
    questions = {model: [make_record(3, model)] for model in ("teacher", "kd")}
    text = render(tmp_path, few, questions, most=0)
    assert "1 fixed question and 0 of 1,000 test prompts" in " ".join(text.split())
    assert "reference" not in " ".join(Page(text).get_texts("boxes"))


def test_files_with_other_records_are_refused(tmp_path):
    tests = make_tests(3, ["teacher", "kd"])
    tests["kd"][1]["uid"] = "f" * 32
    with pytest.raises(InputError, match=rf"kd/sutras\S+ expected the records of \S+teacher/sutras.*uid {1:032x}"):
        render(tmp_path, tests)
    tests = make_tests(3, ["teacher", "kd"])
    tests["kd"][2]["reference"] = "another"
    with pytest.raises(InputError, match=rf"expected the references of .*uid {2:032x}"):
        render(tmp_path, tests)
    tests = make_tests(3, ["teacher"])
    del tests["teacher"][0]["prompt"]
    with pytest.raises(InputError, match=r"sutras.predictions.jsonl:1: prompt: expected a string"):
        render(tmp_path, tests)


def test_a_base_precedes_its_student_and_shares_its_colour_with_replicas_and_variants():
    columns = order_columns(["teacher", "a-seed1", "a-seed2", "a_base", "a-seed1_nf4", "b"])
    names = ["reference", "teacher", "a_base", "a-seed1", "a-seed2", "a-seed1_nf4", "b"]
    assert [(column.name, column.tone) for column in columns] == list(zip(names, [0, 0, 1, 1, 1, 1, 2], strict=True))
    columns = order_columns(["teacher", "a", "a_nf4", "b", "b_gguf_f16", "c_nf4"])
    assert [column.tone for column in columns] == [0, 0, 1, 1, 2, 2, 3]
    columns = order_columns(["teacher", "a", "a_base", "b", "b_base", "c_base"])
    assert [column.name for column in columns] == [
        "reference", "teacher", "a_base", "a", "b_base", "b", "c_base"
    ]  # fmt: skip
    assert [column.tone for column in columns] == [0, 0, 1, 1, 2, 2, 3]
    assert [column.is_base for column in columns] == [False, False, True, False, True, False, False]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("什么是空性？", "zh"),
        ("これは水です", "ja"),
        ("물은 무엇입니까", "ko"),
        ("What is a cause, 空?", ""),
        ("", ""),
    ],
)
def test_languages(text, language):
    assert guess_language(text) == language


def test_script_and_style_contain_no_closing_tag():
    assert "</" not in PARTS[2].read_text(encoding="utf-8")
    assert "</" not in PARTS[1].read_text(encoding="utf-8")


def open_in_browser(folder, fragment):
    """The page as its script leaves it."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    url = f"{(folder / 'page.html').as_uri()}#{fragment}"
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=60)
    return Page(done.stdout)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("fragment", "shown", "total"),
    [
        ("", list(range(300)), 310),
        (f"test-{305:032x}", [*range(300), 305], 310),  # a link to a prompt
        (f"q={quote('第305问')}", [305], 1),
    ],
)
def test_a_long_page_shows_its_first_prompts_and_searches_all(tmp_path, fragment, shown, total):
    render(tmp_path, make_tests(310, ["teacher", "kd"]), most=400)
    page = open_in_browser(tmp_path, fragment)
    cards = [tags for _, tags in page.tags if tags.get("class") == "card"]
    assert [number for number, card in enumerate(cards) if "hidden" not in card] == shown
    assert f"{total} of 310" in page.get_texts("line")[0]
    (more,) = [tags for _, tags in page.tags if tags.get("id") == "more"]
    assert ("hidden" in more) == (total <= 300)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("query", "shown"),
    [("KD_BASE_2 第3问", 1), ("onerror=alert(1", 1), ("空性 没有", 0)],
)
def test_search_in_a_browser(tmp_path, query, shown):
    """Search takes Chinese, any case and several words literally; hostile text does not run."""
    tests = make_tests(4)
    tests["kd"][1]["prediction"] = HOSTILE
    render(tmp_path, tests)
    page = open_in_browser(tmp_path, f"q={quote(query)}")
    assert page.get_texts("title") == ["Answers side by side: sutras"]
    cards = [tags for _, tags in page.tags if tags.get("class") == "card"]
    assert (len(cards), sum("hidden" not in card for card in cards)) == (4, shown)
    assert f"{shown} of 4" in page.get_texts("line")[0]


def test_a_conversation_is_shown_with_all_its_turns(tmp_path):
    turns = [
        {"role": "user", "content": "第一问"},
        {"role": "assistant", "content": "第一答"},
        {"role": "user", "content": "第二问"},
    ]
    shown = Page(render(tmp_path, make_tests(1, prompt="第二问", turns=turns))).get_texts("prompt")
    assert shown == ["user: 第一问\n\nassistant: 第一答\n\nuser: 第二问"]


def make_verdict(
    record, score, is_contradictory=False, verdicts=({"verdict": "A"}, {"verdict": "B"}), against="teacher"
):
    answers = [digest_of(record["prediction"]), "0"]
    fields = {"against": against, "score": score, "is_contradictory": is_contradictory, "verdicts": verdicts}
    return {"uid": record["uid"], "category": "sutras", "answers": answers} | fields


def test_the_verdicts_of_a_judge_stand_below_the_answers(tmp_path):
    tests = make_tests(7, ("teacher", "kd"))
    found = [(1.0,), (0.25,), (0.5,), (0.5, True), (None, None), (0.5, None, [])]  # the seventh record is not judged
    verdicts = [make_verdict(record, *one) for record, one in zip(tests["kd"], found, strict=False)]
    files = [write(tmp_path, "kd", "verdicts", verdicts)]
    files.append(write(tmp_path, "teacher", "verdicts", [make_verdict(tests["teacher"][0], 0.5, None, [])]))
    paths = [write(tmp_path, model, "predictions", records) for model, records in tests.items()]
    argv = ["--category", "sutras", "--out", str(tmp_path / "page.html"), "--predictions", *paths, "--verdicts"]
    render_answers.main([*argv, *files])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"judge: (.*?)</span>", page) == [
        "better than teacher&#39;s answer",
        "worse than teacher&#39;s answer",
        "as good as teacher&#39;s answer",
        "contradictory about teacher&#39;s answer",
        "unreadable",
        "not asked, same as teacher&#39;s answer",
    ]
    other = write(tmp_path, "other", "verdicts", verdicts)
    with pytest.raises(InputError, match="expected verdicts on the answers of teacher, kd, found those on other"):
        render_answers.main([*argv, other])
