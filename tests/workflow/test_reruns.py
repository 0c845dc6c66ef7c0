"""What reruns, and what does not."""

import json
import os
import shutil
import time

import pytest
from running import ROOT, Directory, merge, planned, read_lines, snakemake
from safetensors.torch import load_file, save_file

PATH = {"mix_records", "make_prompts", "generate_answers", "split_answers", "train_student", "predict_answers"}


def rules_of(jobs, category):
    return {rule for rule, name in jobs if name == category}


def edit(checkout, name, old, new):
    path = checkout / "workflow/scripts" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return lambda: path.write_text(text)


def plan_edited(directory, checkout, edits):
    """Return the jobs of a dry run by a copy of the project with some edits, which are undone afterwards."""
    undo = [edit(checkout, *arguments) for arguments in edits]
    try:
        output = snakemake("-n", "--configfile", directory.configfile, "--directory", directory.path, cwd=checkout)
    finally:
        for restore in undo:
            restore()
    return planned(output)


# Where and how fast a job runs, and a setting that sequence-level training does not use.
SETTINGS_WITHOUT_RESULT = {
    "cache": "elsewhere",
    "teacher": {"generation": {"batch_size": 2}},
    "students": {
        "student_kd": {"train": {"save_steps": 1, "logging_steps": 1, "nodes": 2, "strategy": "fsdp"}},
        "student_seqkd": {"alpha": 0.9},
    },
}
EDITS_WITHOUT_RESULT = [
    ("split_answers.py", "import argparse\n", "# a remark\nimport argparse\n"),
    ("distill/records/splits.py", '"""', '"""Another docstring. '),
    ("distill/common/progress.py", "30.0", "31.0"),
]


def touch(directory):
    later = time.time() + 10
    for pattern in ("artifacts/grpo/*.jsonl", "artifacts/sft/*.jsonl", "models/*/*", "models/adapters/*/*"):
        paths = list(directory.path.glob(pattern))
        assert paths
        for path in paths:
            os.utime(path, (later, later))


def test_what_changes_no_result_reruns_nothing(copy, checkout):
    """A copy of the run, touched inputs, the project elsewhere, and edits of settings, code and a model card.

    One dry run covers all of them: its plan is empty only if none of them reruns a job.
    """
    touch(copy)
    change_text(copy / "models/adapters/banks/README.md")
    copy.configure(merge(copy.config, SETTINGS_WITHOUT_RESULT))
    assert plan_edited(copy, checkout, EDITS_WITHOUT_RESULT) == []


def test_a_category_reruns_alone(copy):
    """A changed record reruns its category, and an added category runs, while the others stay."""
    sft, models = copy / "artifacts/sft", copy / "models/adapters"
    shutil.copy(sft / "sft_train_banks.jsonl", sft / "sft_train_pension_funds.jsonl")
    shutil.copytree(models / "banks", models / "pension_funds")
    path = sft / "sft_train_banks.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[0])
    record["messages"][1]["content"] += " "
    path.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    jobs = copy.planned()
    assert rules_of(jobs, "households") == set()
    assert rules_of(jobs, "banks") >= PATH
    assert rules_of(jobs, "pension_funds") >= PATH


def change_weights(path):
    weights = load_file(path)
    weights[min(weights)][0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})


def change_text(path):
    path.write_text(path.read_text() + " ")


LOADING = {"generate_answers", "predict_answers", "train_student"}


@pytest.mark.parametrize(
    ("name", "change", "banks", "households"),
    [
        ("teacher/model.safetensors", change_weights, LOADING, LOADING),
        pytest.param("teacher/chat_template.jinja", change_text, LOADING, LOADING, marks=pytest.mark.slow),
        ("adapters/banks/adapter_model.safetensors", change_weights, LOADING, set()),
        ("student/model.safetensors", change_weights, LOADING - {"generate_answers"}, LOADING - {"generate_answers"}),
        pytest.param(
            *("student/tokenizer.json", change_text, LOADING - {"generate_answers"}, LOADING - {"generate_answers"}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["teacher", "template", "adapter", "student", "student's tokenizer"],
)
def test_a_changed_model_reruns_what_loads_it(copy, name, change, banks, households):
    change(copy / "models" / name)
    jobs = copy.planned()
    for category, reruns in (("banks", banks), ("households", households)):
        assert rules_of(jobs, category) & (PATH - {"split_answers"}) == reruns


def test_one_category_can_be_run_again(copy):
    jobs = planned(copy.run("-n", "--forcerun", "artifacts/distill_data/raw/train_mix_banks.jsonl"))
    assert rules_of(jobs, "banks") >= PATH
    assert rules_of(jobs, "households") == set()
    jobs = planned(copy.run("-n", "--forcerun", "output/student_kd/banks/model.safetensors"))
    assert [job for job in jobs if job[0] == "train_student"] == [("train_student", "banks")]
    assert "generate_answers" not in {rule for rule, _ in jobs}


@pytest.mark.parametrize(
    ("name", "old", "new", "reruns"),
    [
        ("distill/student/model_card.py", "# {student}: {category}", "# {category}: {student}", {"train_student"}),
        ("distill/models/batches.py", '"cpu": 32', '"cpu": 16', {"generate_answers", "predict_answers"}),
        ("distill/evaluation/score_table.py", "import ", "import string\nimport ", {"tabulate_scores"}),
    ],
    ids=["training", "generation", "table"],
)
def test_code_reruns_the_steps_that_use_it(copy, checkout, name, old, new, reruns):
    jobs = {rule for rule, _ in plan_edited(copy, checkout, [(name, old, new)])}
    assert jobs >= reruns
    assert "mix_records" not in jobs


@pytest.mark.parametrize(
    ("change", "reruns", "stays"),
    [
        ({"teacher": {"generation": {"temperature": 0.5}}}, PATH - {"mix_records", "make_prompts"}, {"make_prompts"}),
        ({"split": {"seed": 1}}, {"split_answers", "train_student"}, {"generate_answers"}),
        ({"students": {"student_kd": {"alpha": 0.9}}}, {"train_student"}, {"split_answers"}),
        ({"evaluation": {"bootstrap": 50}}, {"score_predictions"}, {"predict_answers", "train_student"}),
        # The seed of greedy generation is used for the confidence intervals only.
        ({"evaluation": {"seed": 5}}, {"score_predictions"}, {"predict_answers"}),
    ],
    ids=["temperature", "split", "alpha", "bootstrap", "seed of greedy"],
)
def test_a_setting_reruns_what_depends_on_it(copy, change, reruns, stays):
    copy.configure(merge(copy.config, change))
    jobs = {rule for rule, _ in copy.planned()}
    assert jobs >= reruns
    assert not jobs & stays


def test_the_teacher_answers_new_prompts_only(copy):
    """Another mix, with the teacher at another path: answers are cached by content, so the known ones are reused."""
    answers = copy / "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
    before = {answer["uid"]: answer["raw_output"] for answer in read_lines(answers)}
    (copy / "models/teacher").rename(copy / "models/renamed")
    teacher = copy.config["teacher"] | {"model": "models/renamed"}
    copy.configure(copy.config | {"teacher": teacher, "mix": {"grpo_fraction": 0.8, "sft_fraction": 0.2}})
    copy.run(answers.relative_to(copy.path))
    after = {answer["uid"]: answer["raw_output"] for answer in read_lines(answers)}
    stats = json.loads(answers.with_suffix("").with_suffix(".stats.json").read_text())
    kept = before.keys() & after.keys()
    assert {uid: after[uid] for uid in kept} == {uid: before[uid] for uid in kept}
    assert (stats["prompts"], stats["from_cache"], stats["generated"]) == (32, len(kept), 32 - len(kept))
    assert 0 < stats["generated"] < 12


@pytest.mark.slow
def test_a_teacher_at_another_path_gives_the_same_file(copy):
    (copy / "models/teacher").rename(copy / "models/renamed")
    copy.configure(copy.config | {"teacher": copy.config["teacher"] | {"model": "models/renamed"}})
    answers = copy / "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
    before = answers.read_bytes()
    copy.run(answers.relative_to(copy.path))
    stats = json.loads(answers.with_suffix("").with_suffix(".stats.json").read_text())
    assert (stats["from_cache"], stats["generated"]) == (stats["prompts"], 0)
    assert answers.read_bytes() == before


def test_a_category_that_fails_leaves_the_others_running(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    path = directory / "artifacts/grpo/grpo_banks.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], '{"messages": [', *lines[5:]]) + "\n")
    raw = "artifacts/distill_data/raw"
    targets = [f"{raw}/{category}_teacher_prompts_base.jsonl" for category in ("banks", "households")]
    output = directory.run(*targets, check=False)
    assert "error: " in output
    assert "artifacts/grpo/grpo_banks.jsonl:5: line: expected a JSON object" in output
    assert "Traceback" not in output
    assert (directory / targets[1]).exists()
    assert not (directory / targets[0]).exists()


def test_missing_files_are_an_error_if_configured(fresh, tmp_path):
    directory = Directory(fresh.copy(tmp_path / "run").path, fresh.config | {"source": {"missing": "error"}})
    output = directory.run("-n", check=False)
    assert "pension_funds: artifacts/sft/sft_train_pension_funds.jsonl not found" in output


def test_all_configuration_errors_are_listed_before_anything_runs(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    students = {"student_kd": directory.config["students"]["student_kd"] | {"methd": "jsd", "alpha": 2}}
    directory.configure(directory.config | {"students": students, "mixx": {}})
    output = directory.run("-n", check=False)
    for text in ("students.student_kd.methd", "did you mean method?", "students.student_kd.alpha", "mixx"):
        assert text in output
    assert "Traceback" not in output


def test_without_the_demo_key_models_of_that_name_are_the_users_own(copy):
    (copy / "models/teacher/config.json").unlink()
    assert "train_demo_model" not in (output := copy.run("--dry-run", check=False))
    assert "teacher.model: models/teacher: expected a model folder, found no config.json in it" in output
    assert (ROOT / "workflow/rules/demo.smk").exists()
