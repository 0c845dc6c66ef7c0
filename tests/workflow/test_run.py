"""One run of the whole workflow on tiny models: every file of the data path, and the report."""

import csv
import json
import re
import subprocess

import pytest
from running import ROOT, environment, merge, read_lines, snakemake

MODELS = ["teacher", "student_kd", "student_kd_base", "student_seqkd", "student_seqkd_base"]


def test_the_category_without_sft_file_is_skipped_with_a_warning(finished):
    assert "pension_funds: artifacts/sft/sft_train_pension_funds.jsonl not found" in finished.output
    assert not list(finished.path.glob("**/*pension_funds*.metrics.json"))


def test_the_mix_takes_each_sources_share(finished):
    for category in ("banks", "households"):
        mix = read_lines(finished / f"artifacts/distill_data/raw/train_mix_{category}.jsonl")
        assert [record["origin"] for record in mix] == ["grpo"] * 21 + ["sft"] * 12  # int(30 · 0.7), int(40 · 0.3)
        assert len({record["uid"] for record in mix}) == 33


def test_prompts_and_answers_carry_the_designs_fields(finished):
    prompts = read_lines(finished / "artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl")
    answers = read_lines(finished / "artifacts/distill_data/raw/teacher_outputs_banks.jsonl")
    assert prompts[0].keys() == {"id", "uid", "system", "prompt", "label", "origin"}
    fields = {"raw_output", "think", "answer", "parsed_value", "finish_reason", "generated_tokens"}
    assert answers[0].keys() >= prompts[0].keys() | fields
    assert [answer["uid"] for answer in answers] == [prompt["uid"] for prompt in prompts]
    # Without an answer contract no value is parsed from an SFT answer, so only GRPO records have labels.
    assert all((prompt["label"] is not None) == (prompt["origin"] == "grpo") for prompt in prompts)
    stats = json.loads((finished / "artifacts/distill_data/raw/teacher_outputs_banks.stats.json").read_text())
    assert (stats["prompts"], stats["from_cache"], stats["generated"]) == (33, 0, 33)
    assert stats["usable"] + stats["rejected"] == 33


def test_splits_are_aligned_and_share_no_prompt(finished):
    folder = finished / "artifacts/distill_data/processed/banks"
    uids = []
    for split in ("train", "val", "test"):
        lines = [(folder / f"{split}.{kind}").read_text().count("\n") for kind in ("source", "target", "jsonl")]
        assert len(set(lines)) == 1
        uids += [record["uid"] for record in read_lines(folder / f"{split}.jsonl")]
    assert len(uids) == len(set(uids)) > 0


def test_no_placeholder_reaches_a_target(finished):
    for path in (finished / "artifacts/distill_data/processed").glob("*/*.target"):
        text = path.read_text()
        assert "predicted_value" not in text
        assert "[Using the" not in text


def test_students_are_ordinary_models(finished):
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    for student in ("student_kd", "student_seqkd"):
        folder = finished / f"output/{student}/banks"
        assert {path.name for path in folder.iterdir()} >= names | {"training_log.jsonl", "samples.jsonl", "README.md"}
        log = [line for line in read_lines(folder / "training_log.jsonl") if "loss" in line]
        assert (log[0]["kd"] is None) == (student == "student_seqkd")
        assert log[-1]["loss"] < log[0]["loss"]


def test_the_table_has_every_model_in_every_category(finished):
    with open(finished / "output/report/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "category", "metric", "value", "ci_low", "ci_high", "n", "seeds", "seed_sd"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == MODELS
    assert {row["category"] for row in rows} == {"banks", "households", "all"}
    for metric in ("ppl", "bleu", "rougeL"):
        found = {row["model"]: row for row in rows if row["metric"] == metric and row["category"] == "all"}
        assert all(int(row["n"]) > 0 and row["value"] for row in found.values())
    ppl = {row["model"]: float(row["value"]) for row in rows if (row["metric"], row["category"]) == ("ppl", "all")}
    # The teacher is random: its answers are hardly likelier to itself than to a student trained on them.
    assert max(ppl["teacher"], ppl["student_kd"]) < ppl["student_kd_base"]


def test_the_statistics_of_predictions_are_all_that_later_steps_read(copy):
    """Pooled scores and comparisons are made again without the texts."""
    evaluation = copy / "output/evaluation"
    tables = ["output/report/metrics.csv", "output/report/comparisons.csv"]
    before = [(copy / table).read_bytes() for table in tables]
    pooled = evaluation / "teacher/all.metrics.json"
    metrics = pooled.read_bytes()
    for path in (pooled, *(copy / table for table in tables)):
        path.unlink()
    for path in evaluation.rglob("*.predictions.jsonl"):
        path.write_text("no texts\n")
    rules = ("--allowed-rules", "pool_scores", "tabulate_scores", "compare_models", "--rerun-triggers", "mtime")
    copy.run(*tables, *rules)
    assert [pooled.read_bytes(), *((copy / table).read_bytes() for table in tables)] == [metrics, *before]


def test_one_category_is_not_scored_twice(fresh, tmp_path):
    """Also if a student is pooled, whose category is `all`: its model card has the scores of the only category."""
    directory = fresh.copy(tmp_path / "one")
    assert "pool_scores" in {rule for rule, _ in directory.planned()}
    changes = {"categories": ["banks"], "export": {"variants": ["full"]}, "students": {"student_seqkd": {"pool": True}}}
    directory.configure(merge(directory.config, changes))
    jobs = directory.planned()
    assert ("write_model_card", "all") in jobs
    assert "pool_scores" not in {rule for rule, _ in jobs}
    assert {category for rule, category in jobs if rule == "score_predictions"} == {"banks"}


def test_a_base_that_students_share_is_evaluated_once(finished):
    jobs = re.findall(r"rule predict_answers:.*?wildcards: (.*?)$", finished.output, flags=re.MULTILINE | re.DOTALL)
    assert len(jobs) == 8  # (teacher, two students, one base) in two categories
    assert not any("student_seqkd_base" in job for job in jobs)
    paths = [
        finished / f"output/evaluation/{name}_base/banks.predictions.jsonl" for name in ("student_kd", "student_seqkd")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_models_are_compared_in_pairs_and_read_side_by_side(finished):
    with open(finished / "output/report/comparisons.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["category"], row["metric"]) == ("all", "ppl")]
    pairs = [("student_kd", "student_kd_base"), ("student_kd", "teacher"), ("student_kd", "student_seqkd")]
    pairs += [("student_seqkd", "student_seqkd_base"), ("student_seqkd", "teacher")]
    assert [(row["model"], row["other"]) for row in rows] == pairs
    with open(finished / "output/report/metrics.csv", newline="") as file:
        scores = {
            row["model"]: row for row in csv.DictReader(file) if (row["category"], row["metric"]) == ("all", "ppl")
        }
    for row, (model, other) in zip(rows, pairs, strict=True):
        difference = float(scores[model]["value"]) - float(scores[other]["value"])
        assert float(row["difference"]) == pytest.approx(difference, rel=1e-9)
    page = (finished / "output/report/answers/banks.html").read_text(encoding="utf-8")
    tests = len(read_lines(finished / "artifacts/distill_data/processed/banks/test.jsonl"))
    assert page.count('<article class="card"') == tests
    assert page.count('data-model="student_seqkd_base"') == tests


def test_the_page_of_samples_has_the_answers_of_each_validation(finished):
    page = (finished / "output/report/samples.html").read_text(encoding="utf-8")
    samples = read_lines(finished / "output/student_kd/banks/samples.jsonl")
    validations = [line for line in read_lines(finished / "output/student_kd/banks/training_log.jsonl")
                   if "val_loss" in line]  # fmt: skip
    prompts = min(4, len(read_lines(finished / "artifacts/distill_data/processed/banks/val.jsonl")))
    assert [one["step"] for one in samples] == [line["step"] for line in validations for _ in range(prompts)]
    assert max(one["tokens"] for one in samples) == 16  # evaluation.max_new_tokens
    every = [read_lines(path) for path in finished.path.glob("output/student_*/*/samples.jsonl")]
    assert len(every) == 4
    # A card for each prompt, with its reference.
    assert page.count('<div class="step">') == sum(map(len, every)) + page.count('<article class="card"')


def test_the_report_holds_figures_and_captions(copy, tmp_path):
    report = tmp_path / "report.html"
    copy.run("--report", report)
    text = report.read_text()
    assert "System Message" not in text  # docutils writes it for a malformed caption
    assert len(text) > 100_000
    for name in (
        "scores.svg",
        "training.svg",
        "metrics.csv",
        "comparisons.csv",
        "comparisons.svg",
        "banks.html",
        "samples.html",
    ):
        assert name in text
    assert "Predicted and true values" not in text  # this figure needs an answer contract
    assert "student_kd" in text


def test_no_temporary_file_or_checkpoint_remains(finished):
    assert not list(finished.path.glob("**/*.tmp"))
    assert not (finished / "artifacts/checkpoints/student_kd/banks").exists()


def test_a_dry_run_of_the_real_experiment_needs_no_model(checkout, fresh, tmp_path):
    """Run exactly `snakemake --profile local -n` in the project's root, which holds raw records and no other data."""
    (checkout / "artifacts").symlink_to(fresh.path / "artifacts")
    try:
        output = snakemake("-n", cwd=checkout)
    finally:
        (checkout / "artifacts").unlink()
    assert "Qwen/Qwen2.5-7B-Instruct" in output
    assert re.search(r"^train_student +2$", output, flags=re.MULTILINE)
    assert not (checkout / "output").exists()


def test_without_any_record_the_dry_run_says_what_is_missing(checkout):
    output = snakemake("-n", cwd=checkout, check=False)
    assert "No category has its raw files" in output
    assert "artifacts/grpo/grpo_banks.jsonl" in output
    assert "Traceback" not in output
    assert "File " not in output  # as Snakemake would add for an exception


def test_the_configuration_named_replaces_the_default(finished, copy):
    """With a profile, as the finished run, and without one."""
    assert "Qwen" not in finished.output
    command = ["snakemake", "-np", "--forceall", "--cores", "1"]
    command += ["--configfile", copy.configfile, "--directory", copy.path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "models/teacher" in done.stdout
    assert "Qwen" not in done.stdout + done.stderr


def test_a_dry_run_refuses_what_a_job_would_refuse(fresh, tmp_path):
    directory = fresh.copy(tmp_path / "run")
    path = directory / "models/student/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))
    output = directory.run("--dry-run", check=False)
    assert "models/student/config.json: model_type: bert is not supported" in output
    assert "Traceback" not in output
    assert "localrule" not in output
