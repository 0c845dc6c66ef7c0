"""A judge of pairs: its cost before the run, its scores in the tables, and what is asked again."""

import csv
import json

import pytest
from judges import prefer_first, prefer_longer, read_answers
from running import merge, planned, read_lines
from serving import FakeServer

MODELS = ("teacher", "student_kd", "student_kd_base", "student_seqkd", "student_seqkd_base")
RECORDS = 6


def set_judge(directory, server, **settings):
    pairwise = {"base_url": server.url, "model": "m", "records": RECORDS, **settings}
    directory.configure(merge(directory.config, {"evaluation": {"pairwise": pairwise}}))


def read_verdicts(directory, model, category="banks"):
    return read_lines(directory / f"output/evaluation/{model}/{category}.verdicts.jsonl")


def read_table(directory, name, metric):
    with open(directory / f"output/report/{name}.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] == metric]


def find_line(output):
    (line,) = {line for line in output.splitlines() if line.startswith("Judge ")}
    return line


def count_asked(directory):
    """The number of verdicts that were asked for, without those that models share."""
    names = ("student_kd", "student_kd_base", "student_seqkd")
    return sum(
        len(one["verdicts"])
        for name in names
        for category in ("banks", "households")
        for one in read_verdicts(directory, name, category)
    )


def test_a_judge_costs_what_was_said_and_is_asked_once(copy):
    with FakeServer(prefer_longer) as server:
        set_judge(copy, server)
        output = copy.run("--dry-run")
        most = 2 * RECORDS * 3 * 2  # two orders, three models of which no other has the answers, two categories
        line = find_line(output)
        assert line.startswith(f"Judge m: at most {most} requests for 3 models against teacher in 2 categories, about ")
        assert f"tokens to read and at most {most * 1024:,} to write; for the answers as they are now, " in line
        rules = {rule for rule, _ in planned(output)}
        assert "judge_pairs" in rules
        assert not rules & {"predict_answers", "train_student", "generate_answers", "plot_values"}
        still = int(line.rpartition("now, at most ")[2].split(" are still to be sent")[0])

        copy.run()
        asked = len(server.bodies)
        assert still == count_asked(copy) <= most
        # Models with the same answers share verdicts, unless they ask at the same time.
        assert len({body["messages"][-1]["content"] for body in server.bodies}) <= asked <= still
        assert {body["model"] for body in server.bodies} == {"m"}
        rows = {(row["model"], row["category"]): row for row in read_table(copy, "metrics", "pairwise_win_rate")}
        assert rows.keys() == {(model, category) for model in MODELS for category in ("banks", "households", "all")}
        for model in MODELS:
            for category in ("banks", "households"):
                scores = [one["score"] for one in read_verdicts(copy, model, category)]
                assert float(rows[model, category]["value"]) == pytest.approx(sum(scores) / RECORDS, abs=1e-12)
                assert int(rows[model, category]["n"]) == RECORDS
            assert int(rows[model, "all"]["n"]) == 2 * RECORDS
        assert rows["teacher", "all"]["value"] == "0.5"
        pairs = {(row["model"], row["other"]) for row in read_table(copy, "comparisons", "pairwise_win_rate")}
        assert {("student_kd", "student_seqkd"), ("student_kd", "student_kd_base"), ("student_kd", "teacher")} <= pairs
        assert "pairwise win rate" in (copy / "output/report/scores.svg").read_text()
        page = (copy / "output/report/answers/banks.html").read_text()
        assert page.count(">judge: ") == 4 * RECORDS
        bases = [read_verdicts(copy, f"{student}_base") for student in ("student_kd", "student_seqkd")]
        assert bases[0] == bases[1]

        # Nothing is left, wherever the server is.
        set_judge(copy, server, base_url="http://127.0.0.1:9/v1", concurrency=2, timeout=5)
        output = copy.run("--dry-run")
        assert planned(output) == []
        assert find_line(output).endswith("for the answers as they are now, all verdicts are stored")
        copy.run("--forcerun", "judge_pairs")

        # One answer of one model changes.
        set_judge(copy, server)
        path = copy / "output/evaluation/student_kd/banks.predictions.jsonl"
        uid = read_verdicts(copy, "student_kd")[0]["uid"]
        records = [one | ({"prediction": "new " * 90} if one["uid"] == uid else {}) for one in read_lines(path)]
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
        output = copy.run("--dry-run")
        assert "for the answers as they are now, at most 2 are still to be sent (about " in find_line(output)
        assert [job for job in planned(output) if job[0] == "judge_pairs"] == [("judge_pairs", "banks")]
        copy.run()
        new = server.bodies[asked:]
        assert len(new) == 2
        assert all("new new" in "".join(read_answers(body)) for body in new)
        assert {one["uid"]: one["score"] for one in read_verdicts(copy, "student_kd")}[uid] == 1.0


def test_the_instruction_is_part_of_the_verdicts_and_a_judge_of_positions_is_found_out(copy):
    prompt = copy / "judge.txt"
    with FakeServer(prefer_first) as server:
        set_judge(copy, server, prompt="judge.txt", against="student_kd_base")
        output = copy.run("--dry-run", check=False)
        assert "evaluation.pairwise.prompt: judge.txt: expected the instruction of a judge" in output
        prompt.write_text("The funnier answer is better.\n")
        target = "output/evaluation/student_kd/banks.metrics.json"
        copy.run(target)
        scores = json.loads((copy / target).read_text())
        assert (scores["pairwise_win_rate"], scores["pairwise_contradictory"]) == (0.5, 1.0)
        asked = len(server.bodies)
        assert all("funnier" in body["messages"][0]["content"] for body in server.bodies)
        assert ("judge_pairs", "banks") not in planned(copy.run("--dry-run", target))
        prompt.write_text("The sadder answer is better.\n")
        copy.run(target)
        assert len(server.bodies) == 2 * asked
        # The model that the others are compared with, and a model with the same answers, need no request.
        copy.run(
            "output/evaluation/student_kd_base/banks.metrics.json",
            "output/evaluation/student_seqkd_base/banks.metrics.json",
        )
        assert len(server.bodies) == 2 * asked


def test_a_judge_is_checked_before_the_run(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    pairwise = {"base_url": "http://user:secret@host/v1", "model": "m", "against": "student_kd_bas"}
    directory.configure(merge(directory.config, {"evaluation": {"pairwise": pairwise}}))
    output = directory.run("--dry-run", check=False)
    models = ", ".join(MODELS)
    text = f"evaluation.pairwise.against: expected an evaluated model, one of {models}, found student_kd_bas"
    assert f"{text}; did you mean student_kd_base?" in output
    assert "evaluation.pairwise.base_url: expected an address like" in output
    assert "secret" not in output
    pairwise |= {"base_url": "http://localhost:1/v1", "against": "teacher"}
    directory.configure(merge(directory.config, {"evaluation": {"pairwise": pairwise}}))
    expected = (
        "at most 2,400 requests for 3 models against teacher in 2 categories, tokens unknown until the prompts exist"
    )
    assert expected in find_line(directory.run("--dry-run"))
