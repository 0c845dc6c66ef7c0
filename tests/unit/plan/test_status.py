"""The status table, from the text of dry runs."""

import json

import pytest

from distill.common.errors import InputError
from distill.common.progress_file import FOLDER
from distill.plan import status
from distill.plan.status import Status, parse_dry_run, render_table, shorten_reason

SKIPPED = "Categories without raw files are skipped:\n  pension_funds: artifacts/sft/p.jsonl not found\n"


def job(rule, reason="", **wildcards):
    log = "/".join(map(str, [rule, *wildcards.values()]))
    text = f"\n[Sun Nov 22 16:52:15 2026]\nrule {rule}:\n    input: a, b\n    log: logs/{log}.log\n    jobid: 5\n"
    text += f"    reason: {reason}\n"
    pairs = ", ".join(f"{name}={value}" for name, value in wildcards.items())
    return text + (f"    wildcards: {pairs}\n" if pairs else "") + "    resources: tmpdir=/tmp\n"


ALL = SKIPPED + "".join(
    job(rule, "Forced execution", category=category)
    for category in ("banks", "households")
    for rule in ("mix_records", "make_prompts", "generate_answers", "split_answers")
)
ALL += "".join(
    job("train_student", "Forced execution", category=category, student=student)
    for category in ("banks", "households")
    for student in ("a", "b")
)


def test_jobs_are_read_with_wildcards_and_reason():
    jobs, skipped = parse_dry_run(SKIPPED + job("train_student", "Missing output files: x", student="a", category="b"))
    assert [(one.rule, one.wildcards, one.reason) for one in jobs] == [
        ("train_student", {"student": "a", "category": "b"}, "Missing output files: x")
    ]
    assert skipped == {"pension_funds": "artifacts/sft/p.jsonl"}


def test_the_table_tells_done_from_to_do_and_why():
    todo = SKIPPED + job("generate_answers", "Updated input files: models/x", category="banks")
    todo += job("train_student", "Input files updated by another job: y", category="banks", student="a")
    lines = render_table(todo, ALL, colour=False).splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert rows["banks"].split() == (
        [
            "banks",
            "done",
            "done",
            "to",
            "do",
            "done",
            "to",
            "do",
            "1/2",
            "answers:",
            "changed:",
            "models/x",
        ]
    )
    assert "to do" not in rows["households"]
    assert rows["pension_funds"].split() == ["pension_funds", "missing", "input", "artifacts/sft/p.jsonl"]
    assert rows["report"].split() == ["report", "done"]


def test_shards_and_what_gathers_them_are_one_step():
    shards = "".join(
        job("generate_answers", "Missing output files: x", category="banks", scatteritem=f"{n}-of-3") for n in (1, 2, 3)
    )
    every = shards + job("gather_answers", "Missing output files: y", category="banks")
    todo = job("generate_answers", "Missing output files: x", category="banks", scatteritem="2-of-3")
    todo += job("gather_answers", "Missing output files: y", category="banks")
    assert parse_dry_run(todo)[0][0].wildcards == {"category": "banks", "scatteritem": "2-of-3"}
    row = next(line for line in render_table(todo, every, colour=False).splitlines() if line.startswith("banks"))
    assert "to do 2/4" in row
    assert row.endswith("answers: not made yet")


def test_the_teacher_and_its_engine_stand_above_the_table():
    lines = render_table("", "Using profile local\nTeacher: a/b, engine vllm\n" + ALL, colour=False).splitlines()
    assert lines[0] == "Teacher: a/b, engine vllm"
    assert lines[1:] == render_table("", ALL, colour=False).splitlines()


def test_a_step_without_jobs_is_no_column():
    head = render_table("", ALL, colour=False).splitlines()[0]
    assert head.split() == ["category", "mix", "prompts", "answers", "split", "train", "why"]


def test_signals_and_copies_are_steps():
    signals = "".join(
        job("compute_signal", "Forced execution", category="banks", signal=s) for s in ("hidden", "topk_8")
    )
    every = ALL + signals + job("copy_layers", "Forced execution", category="households", layers=3)
    todo = job("compute_signal", "Updated input files: train.jsonl", category="banks", signal="topk_8")
    table = render_table(todo, every, colour=False)
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert rows["category"][5:8] == ["signal", "init", "train"]
    assert rows["banks"][5:] == ["to", "do", "1/2", "–", "done", "signal:", "changed:", "train.jsonl"]
    assert rows["households"][5:] == ["–", "done", "done"]


def test_what_serves_all_categories_has_a_row_of_its_own():
    pooled = job("train_student", "Missing output files: x", category="all", student="c")
    every = ALL + pooled + job("score_predictions", "Forced execution", category="all", model="c")
    lines = render_table(pooled, every, colour=False).splitlines()
    assert [line.split()[0] for line in lines] == ["category", "banks", "households", "all", "pension_funds", "report"]
    assert lines[3].split() == ["all", *"––––", "to", "do", "train:", "not", "made", "yet"]
    assert "all" not in render_table("", ALL + job("score_predictions", category="all"), colour=False).split()


def test_downloads_are_the_first_step_of_all():
    model = {"hub": "hf", "source": "a/b"}
    todo = job("download_model", "Missing output files: x", **model).replace("rule", "localrule")
    head, *rows = render_table(
        todo, ALL + job("download_model", "Forced execution", **model), colour=False
    ).splitlines()
    assert head.split()[1:3] == ["download", "mix"]
    assert rows[2].split() == ["all", "to", "do", *"–––––", "download:", "not", "made", "yet"]


def test_colour_is_for_terminals_only():
    assert "\033[" not in render_table(SKIPPED, ALL, colour=False)
    assert "\033[32mdone" in render_table(SKIPPED, ALL, colour=True)


def test_reasons_are_told_in_few_words():
    assert shorten_reason("Missing output files: a, b; Input files updated by another job: c") == "not made yet"
    changed = shorten_reason("Params have changed since last execution: before: 1 now: 2")
    assert changed == "settings, code or models changed"
    assert shorten_reason("Updated input files: raw.jsonl; Params have changed") == "changed: raw.jsonl"
    assert shorten_reason("Something new") == "Something new"


def test_a_running_job_is_told_from_one_to_do():
    todo = job("generate_answers", "Missing output files: x", category="banks")
    todo += job("train_student", "Missing output files: y", category="banks", student="a")
    todo += job("train_student", "Missing output files: y", category="households", student="b")
    todo += job("tabulate_scores", "Missing output files: z")
    every = ALL + job("tabulate_scores", "Forced execution")

    def read_rows(*running, colour=False):
        return {line.split()[0]: line for line in render_table(todo, every, colour, running).splitlines()}

    rows = read_rows("logs/generate_answers/banks.log", "logs/train_student/banks/a.log")
    assert rows["banks"].split()[1:10] == ["done", "done", "running", "done", "to", "do", "1/2,", "running", "1"]
    assert "running" not in rows["households"]
    assert "running" not in rows["report"]
    assert read_rows("logs/tabulate_scores.log")["report"].split() == ["report", "running"]
    assert "\033[36mrunning" in read_rows("logs/tabulate_scores.log", colour=True)["report"]
    assert read_rows("logs/of/another/configuration.log") == read_rows()


def test_columns_are_as_wide_as_their_cells():
    todo = "".join(job("train_student", "x", category="banks", student=f"s{number}") for number in range(1000))
    head, *rows = render_table(todo, ALL + todo, False, ["logs/train_student/banks/s3.log"]).splitlines()
    assert "to do 1000/1002, running 1  train: x" in rows[0]
    assert head.index("why") == rows[0].index("train: x")


class Look:
    """A status whose dry runs are made up; they take `seconds` on a made-up clock."""

    def __init__(self, monkeypatch, directory, seconds):
        self.now, self.dry_runs, self.error, self.seconds = 0.0, 0, None, seconds
        monkeypatch.setattr(status.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(status, "read_queue", lambda: None)
        self.directory = directory
        monkeypatch.setattr(status, "run_dry", self.run_dry)
        self.status = Status(["--cores", "1"], colour=False)

    def run_dry(self, arguments):
        assert arguments == ["--cores", "1"]
        self.dry_runs += 1
        self.now += self.seconds
        if self.error:
            raise InputError(self.error)
        text = f"  Working directory: {self.directory}\n" + ALL
        return text, text


def announce(directory, log):
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"log": log, "pid": 1, "host": "n7", "started": 0, "time": 0}
    (folder / "job.json").write_text(json.dumps(facts))


def test_a_refresh_repeats_the_dry_runs_only_now_and_then_or_if_a_job_starts_or_ends(monkeypatch, tmp_path):
    look = Look(monkeypatch, tmp_path, seconds=2.0)
    assert "running" not in look.status.render()
    look.now += 19
    look.status.render()
    assert look.dry_runs == 1
    look.now += 2
    look.status.render()
    assert look.dry_runs == 2
    announce(tmp_path, "logs/mix_records/banks.log")
    shown = look.status.render()
    assert look.dry_runs == 3
    assert "mix_records/banks" in shown.splitlines()[-1]
    assert "process 1 on n7, seen 0 s ago" in shown
    look.status.render()
    assert look.dry_runs == 3
    (tmp_path / FOLDER / "job.json").unlink()
    assert "running" not in look.status.render()
    assert look.dry_runs == 4


def test_a_dry_run_that_fails_is_explained_by_missing_records_or_shown_as_it_is(monkeypatch, tmp_path):
    look = Look(monkeypatch, tmp_path, seconds=2.0)
    look.error = "No category has its raw files"
    config = {
        "categories": ["banks"],
        "source": {"format": "alpaca", "path": "data/{category}.json", "system": "Answer."},
    }
    config |= {
        "teacher": {"model": "a/teacher"},
        "students": {"s": {"model": "a/b", "method": "seqkd"}},
        "answer": None,
    }
    monkeypatch.setattr(status, "read_command_line", lambda _: (config, tmp_path))
    assert "missing input  data/banks.json" in look.status.render()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/banks.json").touch()
    with pytest.raises(InputError, match="No category has its raw files"):
        look.status.render()
    config["unknown"] = 1
    (tmp_path / "data/banks.json").unlink()
    look.error = "the configuration has an unknown key"
    with pytest.raises(InputError, match="the configuration has an unknown key"):
        look.status.render()
