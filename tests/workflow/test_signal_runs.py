"""Cached teacher signals, copied layers and pooled students in the workflow."""

import json
import os
import re
import shutil
import time

import pytest
from running import CONFIG, merge, planned, read_lines

KD = CONFIG["students"]["student_kd"]
STUDENTS = {
    "topk": KD | {"signal": "topk", "top_k": 8},
    "sampled": KD | {"signal": "topk", "top_k": 8, "tail_samples": 4},
    "copied": KD | {"model": {"init": "copy_layers", "layers": 1}, "signal": "hidden"},
    "pooled": KD | {"pool": True, "signal": "topk", "top_k": 8, "train": KD["train"] | {"packing": True}},
}
STUDENTS_CONFIG = CONFIG | {"categories": ["banks", "households"], "students": STUDENTS}
TRAINED = ["--until", "train_student"]
CATEGORIES = ("banks", "households")


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """All students trained on the finished run's splits, without their evaluation."""
    directory = finished.copy(tmp_path_factory.mktemp("trained") / "run")
    directory.configure(STUDENTS_CONFIG)
    directory.run(*TRAINED)
    return directory


@pytest.fixture(scope="module")
def dry_run(trained):
    """Output of a dry run of all jobs."""
    return trained.run("--dry-run", "--nocolor")


@pytest.fixture
def copy(trained, tmp_path):
    """A copy with new time stamps."""
    return trained.copy(tmp_path / "copy")


def plan(directory, *arguments):
    """Return the (rule, category) pairs of a dry run up to the trained students."""
    return [job for job in planned(directory.run("--dry-run", *TRAINED, *arguments)) if job[0] != "all"]


def read_stats(directory, category, signal):
    path = directory / f"artifacts/distill_data/teacher_signal/{category}/{signal}/stats.json"
    return json.loads(path.read_text())


@pytest.mark.slow
def test_signals_copied_layers_and_students_are_made(trained):
    for category in CATEGORIES:
        for signal in ("hidden", "topk_8_t2", "topk_8_s4_t2"):
            stats = read_stats(trained, category, signal)
            assert stats["records"] == stats["computed"] > 10
        for student in ("topk", "sampled", "copied"):
            assert (trained / f"output/{student}/{category}/model.safetensors").exists()
        copied = json.loads((trained / f"artifacts/initial_students/1_layers/{category}/config.json").read_text())
        assert copied["num_hidden_layers"] == 1
    assert (trained / "output/pooled/all/model.safetensors").exists()
    assert not (trained / "output/pooled/banks").exists()


@pytest.mark.slow
def test_the_size_of_a_signal_is_logged_before_it_is_computed(trained, dry_run, fresh, tmp_path):
    """With and without answers, whose tokens are those that the teacher generated for the splits that are learned.

    Tests' teachers write broken characters, of which a signal has more tokens: it reads the answers' text.
    """
    for category in CATEGORIES:
        data = trained / "artifacts/distill_data"
        learned = {
            (record["uid"], record["sample"])
            for split in ("train", "val")
            for record in read_lines(data / f"processed/{category}/{split}.jsonl")
        }
        answers = read_lines(data / f"raw/teacher_outputs_{category}.jsonl")
        expected = sum(one["generated_tokens"] for one in answers if (one["uid"], one["sample"]) in learned)
        for signal, size in (("hidden", 68), ("topk_8_t2", 28), ("topk_8_s4_t2", 35)):
            line = rf"teacher signal {signal} of {category}: {size} bytes per token, about ([\d,]+) tokens, .* GB"
            tokens = int(re.search(line, dry_run)[1].replace(",", ""))
            assert tokens == expected
    new = fresh.copy(tmp_path / "new")
    new.configure(STUDENTS_CONFIG)
    assert "teacher signal topk_8_t2 of banks: 28 bytes per completion token" in new.run("--dry-run")


@pytest.mark.slow
def test_a_changed_record_computes_its_own_signal_only(copy):
    path = copy / "artifacts/sft/sft_train_banks.jsonl"
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        record = json.loads(line)
        record["messages"][1]["content"] += " " if number == 0 else ""
        lines[number] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    before = {category: read_stats(copy, category, "topk_8_t2") for category in CATEGORIES}
    jobs = plan(copy)
    assert {category for rule, category in jobs if rule == "compute_signal"} == {"banks"}
    assert {category for rule, category in jobs if rule == "train_student"} == {"banks", "all"}
    assert "copy_layers" not in {rule for rule, _ in jobs}
    copy.run("artifacts/distill_data/teacher_signal/banks/topk_8_t2/index.json")
    stats = read_stats(copy, "banks", "topk_8_t2")
    assert stats["computed"] <= 1
    assert stats["from_cache"] >= before["banks"]["records"] - 1
    assert read_stats(copy, "households", "topk_8_t2") == before["households"]


@pytest.mark.slow
def test_signals_move_to_another_disk_and_nothing_else_runs(copy, tmp_path):
    copy.configure(copy.config | {"signals": str(tmp_path / "disk")})
    assert plan(copy) == []
    copy.run("--forcerun", "compute_signal", "--until", "compute_signal")
    assert read_stats(copy, "banks", "topk_8_t2")["computed"] == 0
    data = copy / "artifacts/distill_data/teacher_signal/banks/topk_8_t2/data"
    assert data.resolve() == tmp_path / "disk/banks/topk_8_t2/data"
    assert list(data.rglob("*.safetensors"))
    assert plan(copy) == []
    copy.run("--forcerun", "train_student", "--", "output/topk/banks/model.safetensors")


@pytest.mark.slow
def test_new_time_stamps_rerun_nothing(copy):
    later = time.time() + 10
    for path in (copy / "artifacts").rglob("*"):
        if path.is_file() and "distill_data" not in path.parts and "initial_students" not in path.parts:
            os.utime(path, (later, later))
    for path in (copy / "models").rglob("*"):
        os.utime(path, (later, later))
    assert plan(copy) == []


@pytest.mark.slow
def test_one_more_student_of_a_signal_computes_none(copy):
    more = KD | {"method": "jsd", "signal": "topk", "top_k": 8}
    copy.configure(copy.config | {"students": STUDENTS | {"more": more}})
    assert plan(copy) == [("train_student", "banks"), ("train_student", "households")]


@pytest.mark.slow
def test_another_k_and_another_adapter_compute_what_they_change(copy):
    """Top-4 for both categories; for the category of the adapter also the other three signals and the copied layers."""
    copy.configure(merge(copy.config, {"students": {"topk": {"top_k": 4}}}))
    shutil.rmtree(copy / "models/adapters/banks")
    shutil.copytree(copy / "models/adapters/households", copy / "models/adapters/banks")
    assert [job for job in plan(copy) if job[0] in ("compute_signal", "copy_layers")] == [
        ("compute_signal", "banks"),
        ("compute_signal", "banks"),
        ("compute_signal", "banks"),
        ("compute_signal", "banks"),
        ("compute_signal", "households"),
        ("copy_layers", "banks"),
    ]


@pytest.mark.slow
def test_a_recomputed_signal_reuses_what_snakemake_left(copy):
    index = "artifacts/distill_data/teacher_signal/banks/topk_8_t2/index.json"
    copy.run("--forcerun", index, "--until", "compute_signal")
    stats = read_stats(copy, "banks", "topk_8_t2")
    assert (stats["computed"], stats["from_cache"]) == (0, stats["records"])


@pytest.mark.slow
def test_status_has_a_column_for_each_step(trained, dry_run):
    from distill.plan.status import render_table

    table = render_table(dry_run, trained.run("--dry-run", "--nocolor", "--forceall"), colour=False)
    assert re.search(r"mix +prompts +answers +split +signal +init +train +predict +score", table)
    assert re.search(r"^banks( +done){7}", table, re.MULTILINE)
    assert re.search(r"^all ", table, re.MULTILINE)


@pytest.mark.slow
def test_a_pooled_student_has_no_model_of_a_category(trained):
    assert "pooled has no model for banks" in trained.run("output/pooled/banks/config.json", "--dry-run", check=False)


@pytest.mark.slow
def test_a_student_with_another_tokenizer_learns_from_cached_signals(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    write_student(directory)
    learning = {"alpha": 1.0, "train": {"learning_rate": 1.0e-2, "logging_steps": 1}}
    student = merge(KD, {"model": "models/other", "cross_tokenizer": True, **learning})
    students = {"hidden": student | {"signal": "hidden"}, "topk": student | {"signal": "topk", "top_k": 16}}
    directory.configure(CONFIG | {"categories": ["banks"], "students": students})
    directory.run(*TRAINED)
    for name in students:
        lines = [json.loads(line) for line in (directory / f"output/{name}/banks/training_log.jsonl").open()]
        kd = [line["kd"] for line in lines if "kd" in line]
        assert 0 < kd[-1] < 0.9 * kd[0]
    directory.configure(CONFIG | {"categories": ["banks"], "students": {"topk": student | {"cross_tokenizer": False}}})
    assert "set cross_tokenizer: true" in directory.run("--dry-run", check=False)


def write_student(directory):
    """Write a tiny random student with a smaller tokenizer than the teacher's."""
    from tiny import build_model
    from transformers import AutoTokenizer

    import train_demo_tokenizer

    records = sorted(map(str, (directory / "artifacts/sft").glob("*.jsonl")))
    train_demo_tokenizer.main(["--sft", *records, "--out", str(directory / "models/smaller"), "--size", "400"])
    build_model(416, 16).save_pretrained(directory / "models/other")
    AutoTokenizer.from_pretrained(directory / "models/smaller").save_pretrained(directory / "models/other")
