"""The jobs that the profile slurm submits, from dry runs, which need no Slurm."""

import re
import subprocess

import pytest
import yaml
from rules import find_directive, find_rules
from running import ROOT, environment

import make_demo_data

PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """A directory with records for all seven categories of config/config.yaml."""
    path = tmp_path_factory.mktemp("seven")
    categories = yaml.safe_load((ROOT / "config/config.yaml").read_text())["categories"]
    make_demo_data.main(["--out", str(path), "--grpo", "4", "--sft", "4", "--categories", *categories, "--without-sft"])
    return path


def dry_run(path, *arguments):
    command = ["snakemake", "--profile", "slurm", "--directory", path, "--dry-run", *arguments]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plan(seven):
    """The dry run of config/config.yaml."""
    return dry_run(seven)


def find_resources(plan):
    """Return (rule, resources) of each job."""
    return re.findall(r"^ *rule (\w+):\n(?:.+\n)*? *resources: (.*)$", plan, flags=re.MULTILINE)


def test_seven_categories_are_at_most_forty_submissions(plan):
    groups = re.findall(r"Group job (\w+) ", plan)
    single = re.findall(r"^rule (\w+):$", plan, flags=re.MULTILINE)
    assert len(groups) == len(set(groups)) == 3 * 7 + 1  # prepare, collect, evaluate; report
    assert sorted(set(single)) == ["all", "generate_answers", "train_student"]
    assert len(groups) + len(single) - 1 <= 40


def test_jobs_that_load_a_model_request_a_gpu_and_others_do_not(plan):
    jobs = find_resources(plan)
    on_gpu = {rule for rule, resources in jobs if re.search(r"\bgpu=1\b", resources)}
    assert on_gpu == {"generate_answers", "train_student", "predict_answers"}
    assert {"mix_records", "split_answers", "score_predictions", "tabulate_scores"} <= {rule for rule, _ in jobs}


# Student: settings of its training, and the resources and the launcher that they give.
TRAININGS = {
    "default": ({}, r"gpu=1\b(?!.*nodes)", "python "),
    # Slurm rejects a job with fewer GPUs than nodes.
    "two_nodes": ({"nodes": 2}, "gpu=2, nodes=2, tasks=2, tasks_per_gpu=0, mpi=srun", "--nodes 2 --gpus 1"),
    "eight_gpus": ({"nodes": 2, "gpus_per_node": 4}, "gpu=8, nodes=2, tasks=2", "--nodes 2 --gpus 4"),
    "four_gpus": ({"gpus_per_node": 4}, "gpu=4, nodes=1", "--nodes 1 --gpus 4"),
}


def test_a_training_requests_the_gpus_of_all_its_nodes(seven):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    student = config["students"]["student_kd"]
    trainings = {name: student["train"] | train for name, (train, _, _) in TRAININGS.items()}
    config["students"] = {name: student | {"train": train} for name, train in trainings.items()}
    path = seven / "training.yaml"
    path.write_text(yaml.safe_dump(config))
    models = [f"output/{name}/banks/model.safetensors" for name in TRAININGS]
    text = dry_run(seven, *models, "--configfile", path)
    jobs = re.findall(
        r"^rule train_student:\n(?:.+\n)*?.*student=(\w+).*\n(?:.+\n)*? *resources: (.*)\nShell command: (.*)$",
        text,
        flags=re.MULTILINE,
    )
    assert {name for name, _, _ in jobs} == TRAININGS.keys()
    for name, resources, command in jobs:
        _, expected, launch = TRAININGS[name]
        assert re.search(expected, resources), name
        assert command.split("train_student.py")[0].count(launch) == 1, name


def test_every_job_of_a_group_takes_the_only_slot(plan):
    """So the jobs of a group run one after another, and the group requests the CPUs of one and the time of all."""
    assert PROFILE["resources"] == ["group_slots=1"]
    taking = [
        name for name in find_rules() if re.search(r"^ *group_slots=1,$", find_directive(name, "resources"), re.M)
    ]
    assert set(taking) == {line.split("=")[0] for line in PROFILE["groups"]}
    assert all("group_slots=1" in resources for rule, resources in find_resources(plan) if rule in taking)
