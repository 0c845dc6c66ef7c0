"""Students with several seeds: what runs, what is shared, and what a further seed adds."""

import csv

import pytest
from running import merge, planned
from safetensors.torch import load_file

from distill.plan.status import parse_dry_run


def set_seeds(directory, seeds, **changes):
    """Give student_seqkd these seeds, with changes of the configuration."""
    students = {"student_seqkd": {"train": {"seeds": seeds}}}
    directory.configure(merge(directory.config, {"students": students, **changes}))


def list_jobs(output, rule, name):
    """The values of a wildcard of the jobs of a rule in a dry run."""
    return sorted({job.wildcards[name] for job in parse_dry_run(output)[0] if job.rule == rule})


def test_seeds_train_replicas_on_the_answers_that_are_there(copy):
    set_seeds(copy, [7, 8])
    output = copy.run("--dry-run")
    replicas = ["student_seqkd-seed7", "student_seqkd-seed8"]
    assert list_jobs(output, "train_student", "student") == replicas
    assert list_jobs(output, "predict_answers", "model") == replicas
    assert list_jobs(output, "average_scores", "student") == ["student_seqkd"]
    assert not {"mix_records", "generate_answers", "split_answers"} & {rule for rule, _ in planned(output)}


def test_the_model_of_a_student_with_seeds_is_asked_for_by_its_seed(copy):
    set_seeds(copy, [7, 8])
    output = copy.run("--dry-run", "output/student_seqkd/banks/model.safetensors", "--force", check=False)
    assert (
        "student_seqkd: expected a student that is trained, one of student_seqkd-seed7, student_seqkd-seed8" in output
    )


@pytest.mark.slow
def test_two_seeds_are_trained_and_averaged_and_a_third_one_is_trained_alone(copy):
    copy.configure(copy.config | {"categories": ["banks"]})
    set_seeds(copy, [7, 8])
    copy.run()
    weights = [load_file(copy / f"output/student_seqkd-seed{seed}/banks/model.safetensors") for seed in (7, 8)]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    with open(copy / "output/report/metrics.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file) if row["metric"] == "ppl"}
    replicas = [float(rows[f"student_seqkd-seed{seed}"]["value"]) for seed in (7, 8)]
    mean = rows["student_seqkd"]
    assert float(mean["value"]) == pytest.approx(sum(replicas) / 2, rel=1e-12)
    assert float(mean["seed_sd"]) == pytest.approx(abs(replicas[0] - replicas[1]) / 2**0.5, rel=1e-9)
    assert (mean["seeds"], rows["student_kd"]["seeds"], rows["student_kd"]["seed_sd"]) == ("2", "1", "")
    with open(copy / "output/report/comparisons.csv", newline="") as file:
        pairs = {(row["model"], row["other"]): row for row in csv.DictReader(file) if row["metric"] == "ppl"}
    assert pairs["student_seqkd", "student_seqkd_base"]["seeds"] == "2"
    assert pairs["student_kd", "student_seqkd"]["other_seeds"] == "2"
    set_seeds(copy, [7, 8, 9])
    output = copy.run("--dry-run")
    assert list_jobs(output, "train_student", "student") == ["student_seqkd-seed9"]
    assert list_jobs(output, "predict_answers", "model") == ["student_seqkd-seed9"]
