"""The pairwise judge: both orders of two answers, verdicts read strictly, and a journal from which a job resumes."""

import json
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from judges import prefer_first, prefer_longer, read_answers, reply
from running import SCRIPTS, read_lines
from scored_records import write_statistics
from serving import FakeServer, completion

import average_scores
import compare_models
import judge_pairs
import pool_scores
import score_predictions
from distill.common.errors import InputError
from distill.common.files import write_jsonl
from distill.evaluation.bootstrap import draw_weights
from distill.evaluation.comparison_table import read_comparisons
from distill.evaluation.pairs import (
    INSTRUCTION,
    JSON_FORM,
    LINE_FORM,
    is_contradictory,
    pair_answers,
    read_verdict,
    score_verdicts,
)
from distill.evaluation.record_choice import choose_records

COUNT = 12


def make_records(seed, count=COUNT, category="banks", **changes):
    """Predictions whose answers are runs of words; some have the same length."""
    rng = np.random.default_rng(seed)
    record = {"category": category, "reference": "r", "finish_reason": "stop", "usable": True, "label": None}
    return [
        record
        | {"id": number, "uid": f"{number:04d}", "system": "Be brief.", "prompt": f"Question {number}?"}
        | {"prediction": " ".join(["word"] * int(rng.integers(1, 6))) + f" {seed}", "parsed_value": None}
        | changes
        for number in range(count)
    ]


class Run:
    """A folder with the predictions of two models, and the judge's command line."""

    def __init__(self, folder):
        self.folder, self.options = folder, []
        self.write("student", make_records(1))
        self.write("teacher", make_records(2))

    def path(self, model, kind="predictions", category="banks"):
        return self.folder / model / f"{category}.{kind}.jsonl"

    def write(self, model, records):
        path = self.path(model, category=records[0]["category"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, records)

    def list_options(self, model, category, url):
        paths = {"predictions": self.path(model, category=category), "against": self.path("teacher", category=category)}
        paths |= {"out": self.path(model, "verdicts", category), "journal": self.folder / "journal"}
        files = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        return [*files, "--base-url", url, "--model", "m", "--api-key-env", "STILLHOUSE_TEST_KEY"]

    def judge(self, server, *options, model="student", category="banks"):
        judge_pairs.main([*self.list_options(model, category, server.url), *options])
        return read_lines(self.path(model, "verdicts", category))

    def score(self, model="student", *options):
        out = self.folder / f"{model}.json"
        argv = ["--predictions", self.path(model), "--verdicts", self.path(model, "verdicts"), "--out", out]
        score_predictions.main([*map(str, argv), "--metrics", "pairwise", *options])
        return json.loads(out.read_text())


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def expect_scores(first, second):
    """The scores by a judge that prefers the longer answer."""
    lengths = [(len(a["prediction"]), len(b["prediction"])) for a, b in zip(first, second, strict=True)]
    return [0.5 if a == b else float(a > b) for a, b in lengths]


# Reading verdicts


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A is right.\n[[A]]", "A"),
        ("[[B]]", "B"),
        ("Both [[A]] and [[B]] were candidates.\n\n**[[tie]]**\n", "tie"),
        ("[[TIE]]", "tie"),
        ('{"explanation": "B", "verdict": "A"}', "A"),
        ('```json\n{"verdict": "tie"}\n```', "tie"),
        ('<think>[[A]]</think>\n{"verdict": "B"}', "B"),
        ("thinking [[A]]</think>[[B]]", "B"),
    ],
)
def test_a_verdict_is_read(text, verdict):
    assert read_verdict(text, "stop") == (verdict, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Answer A is better.", "neither a JSON object nor a final line"),
        ("[[A]]\nI hope that helps.", "neither"),
        ("My verdict is [[A]]", "neither"),
        ("[[A]] [[B]]", "neither"),
        ("[[C]]", "neither"),
        ("A", "neither"),
        ("", "neither"),
        ('{"verdict": "a"}', "JSON without a verdict that is A, B or tie"),
        ('{"verdict": ["A"]}', "JSON without a verdict"),
        ('{"verdict": "A", "verdict": "B"}', "neither"),
        ('["A"]', "JSON without a verdict"),
        ("<think>[[A]]", "<think> is not closed"),
    ],
)
def test_other_texts_are_no_verdict(text, problem):
    verdict, found = read_verdict(text, "stop")
    assert verdict is None
    assert problem in found


def test_a_verdict_that_was_cut_off_is_none():
    assert read_verdict("[[A]]", "length") == (None, "cut off at max_new_tokens")


@pytest.mark.parametrize(
    ("verdicts", "score", "contradictory"),
    [
        (("A", "B"), 1.0, False),
        (("B", "A"), 0.0, False),
        (("A", "A"), 0.5, True),
        (("B", "B"), 0.5, True),
        (("tie", "tie"), 0.5, False),
        (("A", "tie"), 0.75, False),
        (("tie", "B"), 0.75, False),
        (("B", "tie"), 0.25, False),
        (("tie", "A"), 0.25, False),
        (("A", None), None, None),
        ((None, None), None, None),
    ],
)
def test_scores_of_both_orders(verdicts, score, contradictory):
    assert score_verdicts(verdicts) == score
    assert is_contradictory(verdicts) is contradictory


# What is asked


def test_each_pair_is_asked_in_both_orders_with_the_form_of_the_verdict(run):
    with FakeServer(prefer_longer) as server:
        run.judge(server, "--records", "1")
    (chosen,) = {body["messages"][-1]["content"].split("Question ")[1].split("?")[0] for body in server.bodies}
    mine, theirs = (read_lines(run.path(model))[int(chosen)]["prediction"] for model in ("student", "teacher"))
    assert sorted(map(read_answers, server.bodies)) == sorted([(mine, theirs), (theirs, mine)])
    for body in server.bodies:
        system, user = body["messages"]
        assert system["content"] == f"{INSTRUCTION}\n\n{JSON_FORM}"
        assert "<instructions>\nBe brief.\n</instructions>" in user["content"]
        assert f"<question>\nQuestion {chosen}?\n</question>" in user["content"]
        assert (body["temperature"], body["max_tokens"]) == (0, 1024)
        assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "tie"]


def test_a_conversation_is_shown_with_its_turns_and_functions():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1+1"},
    ]
    record = make_records(1, 1)[0] | {"turns": turns, "tools": [{"name": "add"}], "teacher_prompt": "Hint: 2"}
    other = record | {"prediction": "two"}
    ((_, _, (request, _)),) = pair_answers([record], [other], "Judge.", 9)
    for text in ("user: Hi", "assistant: Yes?", "user: 1+1", '"name": "add"'):
        assert text in request.prompt
    assert "Hint" not in request.prompt


def test_the_users_instruction_replaces_the_general_one(run, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Rhymes count.\n")
    with FakeServer(prefer_longer) as server:
        run.judge(server, "--records", "1", "--prompt", str(prompt), "--no-structured")
    assert {body["messages"][0]["content"] for body in server.bodies} == {f"Rhymes count.\n\n{LINE_FORM}"}
    assert not any("response_format" in body for body in server.bodies)


@pytest.mark.parametrize(("content", "expected"), [(None, "found no file"), (" \n", "found nothing in it")])
def test_a_missing_or_empty_instruction_is_refused(run, tmp_path, content, expected):
    prompt = tmp_path / "prompt.txt"
    if content is not None:
        prompt.write_text(content)
    with FakeServer() as server, pytest.raises(InputError, match=f"{prompt}: expected the instruction.*{expected}"):
        run.judge(server, "--prompt", str(prompt))
    assert not server.bodies


def test_identical_answers_are_a_tie_without_a_request(run):
    records = read_lines(run.path("student"))
    run.write("teacher", [*records[:-1], records[-1] | {"prediction": "other"}])
    with FakeServer(prefer_longer) as server:
        judged = run.judge(server)
    assert len(server.bodies) == 2
    assert [one["score"] for one in judged[:-1]] == [0.5] * (COUNT - 1)
    assert all(one["verdicts"] == [] and one["is_contradictory"] is None for one in judged[:-1])
    scores = run.score()
    assert (scores["n"]["pairwise_win_rate"], scores["n"]["pairwise_contradictory"]) == (COUNT, 1)


def test_the_choice_is_the_same_for_all_models_and_stable(run):
    with FakeServer(prefer_longer) as server:
        first = {one["uid"] for one in run.judge(server, "--records", "5")}
        run.write("other", make_records(3))
        assert {one["uid"] for one in run.judge(server, "--records", "5", model="other")} == first
        for model, seed in (("student", 1), ("teacher", 2)):
            run.write(model, make_records(seed, COUNT + 1))
        assert len({one["uid"] for one in run.judge(server, "--records", "5")} - first) <= 1
        assert len(run.judge(server, "--records", "99")) == COUNT + 1


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_schemas_is_asked_for_a_final_line(run, status):
    def answer(body, number):
        if "response_format" in body:
            return status, {}, {"error": {"message": "This response_format type is unavailable now"}}
        return prefer_longer(body)

    with FakeServer(answer) as server:
        judged = run.judge(server, "--concurrency", "2")
    assert [one["score"] for one in judged] == expect_scores(make_records(1), make_records(2))
    refused = sum("response_format" in body for body in server.bodies)
    assert 1 <= refused <= 2  # those that were open when the first one was refused
    assert len(server.bodies) == 2 * COUNT + refused
    assert all(verdict["raw_output"].endswith("]]") for one in judged for verdict in one["verdicts"])


def test_errors_of_the_server_name_the_judges_options(run):
    with (
        FakeServer(lambda *_: (404, {}, {"detail": "no such model"}), served=("other",)) as server,
        pytest.raises(InputError, match=r"\(evaluation.pairwise.base_url\): .* serves m \(evaluation.pairwise.model\)"),
    ):
        run.judge(server)


# Results


def test_a_judge_that_prefers_the_longer_answer(run, caplog):
    caplog.set_level(logging.INFO)
    with FakeServer(prefer_longer) as server:
        judged = run.judge(server)
    expected = expect_scores(make_records(1), make_records(2))
    assert [one["score"] for one in judged] == expected
    assert {0.0, 0.5, 1.0} == set(expected)
    scores = run.score()
    assert scores["pairwise_win_rate"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert (scores["pairwise_contradictory"], scores["pairwise_unreadable"]) == (0.0, 0.0)
    wins, losses = expected.count(1.0), expected.count(0.0)
    assert (
        f"student against teacher, 12 records: {wins} wins, {losses} losses, {12 - wins - losses} ties" in caplog.text
    )


def test_a_judge_that_prefers_the_first_answer_is_contradictory_throughout(run):
    with FakeServer(prefer_first) as server:
        judged = run.judge(server)
    assert [[one["verdict"] for one in record["verdicts"]] for record in judged] == [["A", "A"]] * COUNT
    scores = run.score()
    assert (scores["pairwise_win_rate"], scores["pairwise_contradictory"]) == (0.5, 1.0)
    assert scores["intervals"]["pairwise_win_rate"] == [0.5, 0.5]


def test_unreadable_verdicts_are_kept_counted_and_named(run, caplog):
    def answer(body, number):
        if "Question 7?" in body["messages"][-1]["content"] and read_answers(body)[0].endswith("2"):
            return completion("I cannot decide.")
        return prefer_longer(body)

    with FakeServer(answer) as server:
        judged = {one["uid"]: one for one in run.judge(server)}
        again = run.judge(server)
    assert len(server.bodies) == 2 * COUNT  # an unreadable verdict is not asked for again
    assert again == list(judged.values())
    record = judged["0007"]
    assert (record["score"], record["is_contradictory"]) == (None, None)
    assert [one["raw_output"] for one in record["verdicts"]].index("I cannot decide.") == 1
    assert "1 of 24 verdicts are unreadable" in caplog.text
    assert "uid 0007, model's answer as B: neither a JSON object" in caplog.text
    assert "'I cannot decide.'" in caplog.text
    scores = run.score()
    assert scores["n"] == {"pairwise_win_rate": 11, "pairwise_contradictory": 11, "pairwise_unreadable": 12}
    assert scores["pairwise_unreadable"] == pytest.approx(1 / 24)
    expected = expect_scores(make_records(1), make_records(2))
    assert scores["pairwise_win_rate"] == pytest.approx(np.mean(expected[:7] + expected[8:]))


def test_too_many_unreadable_verdicts_are_an_error_with_an_example(run):
    def answer(body, number):
        return completion("So so.", "length") if number % 4 == 0 else prefer_longer(body)

    with FakeServer(answer) as server:
        with pytest.raises(InputError) as raised:
            run.judge(server)
        assert "6 of 24 unreadable (at most 10% may be)" in str(raised.value)
        assert "cut off at max_new_tokens: 'So so.'" in str(raised.value)
        assert "evaluation.pairwise.max_new_tokens" in str(raised.value)
        assert not run.path("student", "verdicts").exists()


def test_a_refused_request_is_an_unreadable_verdict(run, caplog):
    def answer(body, number):
        if "Question 3?" in body["messages"][-1]["content"] and read_answers(body)[0].endswith("1"):
            return 400, {}, {"error": {"message": "content policy", "code": "content_filter"}}
        return prefer_longer(body)

    with FakeServer(answer) as server:
        judged = {one["uid"]: one for one in run.judge(server)}
    first, second = judged["0003"]["verdicts"]
    assert (first["verdict"], first["problem"], first["raw_output"]) == (None, "refused by the server", None)
    assert second["verdict"] is not None
    assert "content policy" in caplog.text


# Journal


def test_a_killed_job_resumes_and_a_changed_answer_asks_its_own_two_requests(run):
    """The job is killed while its eleventh request waits for an answer."""
    stop = threading.Event()

    def answer(body, number):
        if number < 11:
            return prefer_longer(body)
        stop.wait(60)
        return None

    with FakeServer(answer) as server:
        argv = run.list_options("student", "banks", server.url)
        job = subprocess.Popen([sys.executable, SCRIPTS / "judge_pairs.py", *argv, "--concurrency", "1"])
        deadline = time.monotonic() + 120
        while len(server.bodies) < 11:
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.kill()
        job.wait()
        stop.set()
    assert not run.path("student", "verdicts").exists()
    with FakeServer(prefer_longer) as server:
        judged = run.judge(server)
        assert len(server.bodies) == 2 * COUNT - 10
        assert [one["score"] for one in judged] == expect_scores(make_records(1), make_records(2))
        assert run.judge(server) == judged
        assert len(server.bodies) == 2 * COUNT - 10
        records = make_records(1)
        run.write("student", [*records[:4], records[4] | {"prediction": "new answer"}, *records[5:]])
        run.judge(server)
    new = server.bodies[2 * COUNT - 10 :]
    assert len(new) == 2
    assert all("new answer" in read_answers(body) for body in new)


@pytest.mark.parametrize("options", [["--max-new-tokens", "77"], ["--no-structured"], ["--template-arguments", "a=1"]])
def test_another_judge_asks_again(run, options):
    with FakeServer(prefer_longer) as server:
        run.judge(server)
        run.judge(server, "--concurrency", "3", "--timeout", "9", "--request-retries", "1", "--records", "9")
        assert len(server.bodies) == 2 * COUNT
        run.judge(server, *options)
        assert len(server.bodies) == 4 * COUNT


def test_models_with_the_same_answers_share_verdicts(run):
    run.write("twin", make_records(1))
    with FakeServer(prefer_longer) as server:
        first = run.judge(server)
        assert run.judge(server, model="twin") == first
    assert len(server.bodies) == 2 * COUNT


# Input


def test_predictions_that_do_not_belong_together_are_refused(run):
    with FakeServer(prefer_longer) as server:
        run.write("teacher", make_records(2, COUNT - 1))
        with pytest.raises(InputError, match="found none of uid 0011"):
            run.judge(server)
        run.write("teacher", make_records(2, prompt=7))
        with pytest.raises(InputError, match=r"teacher/banks.predictions.jsonl:1: prompt: expected a string, found 7"):
            run.judge(server)
        two = [*make_records(2)[:-1], make_records(2)[-1] | {"category": "funds"}]
        run.write("teacher", two)
        with pytest.raises(InputError, match="expected predictions of one category, found banks, funds"):
            run.judge(server)
    assert not server.bodies


def test_verdicts_on_other_answers_are_refused(run):
    with FakeServer(prefer_longer) as server:
        run.judge(server)
    run.write("student", make_records(3))
    with pytest.raises(InputError, match=r"verdicts.jsonl:1: expected verdicts on the answer to uid 0000"):
        run.score()
    run.write("student", make_records(1, COUNT - 1))
    with pytest.raises(InputError, match=r"verdicts.jsonl:12: .*, found those on uid 0011, which has none"):
        run.score()
    run.write("student", make_records(1))
    first, *rest = read_lines(run.path("student", "verdicts"))
    write_jsonl(run.path("student", "verdicts"), [first | {"score": 2}, *rest])
    with pytest.raises(InputError, match=r"verdicts.jsonl:1: score: expected 0, 0.25, 0.5, 0.75, 1 or null, found 2"):
        run.score()


def test_without_verdicts_there_is_no_score(run, caplog):
    caplog.set_level(logging.INFO)
    out = run.folder / "out.json"
    score_predictions.main(["--predictions", str(run.path("student")), "--metrics", "pairwise", "--out", str(out)])
    assert json.loads(out.read_text())["n"] == {}
    assert "there are no verdicts of a judge" in caplog.text


# Statistics


RESAMPLES, SEED = 300, 4
FLAGS = ["--metrics", "pairwise", "--bootstrap", str(RESAMPLES), "--seed", str(SEED)]


def resample(scores, counts):
    """Mean score of the drawn records by a plain loop, without those that have no score."""
    means = []
    for row in counts:
        drawn = [
            score for score, count in zip(scores, row, strict=True) for _ in range(int(count)) if score is not None
        ]
        means.append(sum(drawn) / len(drawn))
    return np.array(means)


def test_intervals_and_differences_equal_a_plain_bootstrap(run):
    """Of 40 records 30 are judged. The verdicts on one answer of the second student are unreadable."""
    found = {"teacher": make_records(2, 40), "student": make_records(1, 40), "other": make_records(3, 40)}
    for model, records in found.items():
        run.write(model, records)
    unclear = choose_records(found["other"], 30)[4]["prompt"]

    def answer(body, number):
        first, second = read_answers(body)
        if unclear in body["messages"][-1]["content"] and "3" in first[-1] + second[-1]:
            return reply(body, "maybe")
        return prefer_longer(body)

    scores, statistics = {}, []
    with FakeServer(answer) as server:
        for model in found:
            judged = {one["uid"]: one["score"] for one in run.judge(server, "--records", "30", model=model)}
            scores[model] = [judged.get(record["uid"]) for record in found[model]]
            verdicts = str(run.path(model, "verdicts"))
            statistics.append(write_statistics(run.folder, model, found[model], *FLAGS[:2], "--verdicts", verdicts))
    (weights,) = draw_weights(40, RESAMPLES, SEED)
    content = run.score("student", *FLAGS[2:])
    means = resample(scores["student"], weights)
    known = [score for score in scores["student"] if score is not None]
    assert content["pairwise_win_rate"] == pytest.approx(sum(known) / 30, abs=1e-12)
    assert content["intervals"]["pairwise_win_rate"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)

    table = run.folder / "comparisons.csv"
    pairs = ["student:other", "student:teacher"]
    compare_models.main(["--statistics", *statistics, "--pairs", *pairs, *FLAGS, "--out", str(table)])
    rows = {(row.model, row.other): row for row in read_comparisons(table) if row.metric == "pairwise_win_rate"}
    for (model, other), row in rows.items():
        both = [[score for score in scores[name] if score is not None] for name in (model, other)]
        difference = sum(both[0]) / len(both[0]) - sum(both[1]) / len(both[1])
        drawn = resample(scores[model], weights) - resample(scores[other], weights)
        assert row.difference == pytest.approx(difference, abs=1e-12)
        assert (row.ci_low, row.ci_high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-12)
        assert row.p_value == pytest.approx((1 + np.sum(abs(drawn - difference) >= abs(difference) - 1e-12)) / 301)
    assert (rows["student", "other"].n, rows["student", "teacher"].n) == (29, 30)
    assert set(scores["teacher"]) == {0.5, None}


def test_categories_are_pooled_by_their_judged_records(run):
    statistics, scores = [], []
    with FakeServer(prefer_longer) as server:
        for category, count, seed in (("banks", 12, 5), ("funds", 30, 7)):
            mine, theirs = (make_records(seed + add, count, category) for add in (0, 1))
            run.write("student", mine)
            run.write("teacher", theirs)
            judged = run.judge(server, "--records", "20", category=category)
            scores += [one["score"] for one in judged]
            verdicts = str(run.path("student", "verdicts", category))
            statistics.append(write_statistics(run.folder, "student", mine, *FLAGS[:2], "--verdicts", verdicts))
    out = run.folder / "all.json"
    pool_scores.main(["--statistics", *statistics, *FLAGS, "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["n"]["pairwise_win_rate"] == len(scores) == 32
    assert content["pairwise_win_rate"] == pytest.approx(sum(scores) / 32, abs=1e-12)


def test_replicas_of_a_student_are_averaged(run):
    statistics, rates = [], []
    with FakeServer(prefer_longer) as server:
        for seed in (4, 6):
            records, model = make_records(seed), f"kd-seed{seed}"
            run.write(model, records)
            rates.append(np.mean([one["score"] for one in run.judge(server, model=model)]))
            verdicts = str(run.path(model, "verdicts"))
            statistics.append(write_statistics(run.folder, model, records, *FLAGS[:2], "--verdicts", verdicts))
    out = run.folder / "mean.json"
    average_scores.main(["--statistics", *statistics, *FLAGS, "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["pairwise_win_rate"] == pytest.approx(np.mean(rates), abs=1e-12)
    assert content["seed_sd"]["pairwise_win_rate"] == pytest.approx(np.std(rates, ddof=1), abs=1e-12)
    assert rates[0] != rates[1]
