"""The whole workflow on two nodes: the files of a local run, one job on a GPU at a time, few submissions."""

import re
import shutil
from collections import Counter
from datetime import timedelta
from itertools import pairwise

import pytest
from running import ONE_THREAD, snakemake
from slurm_testbed import submitted, wait_until

# Files with durations, memory or dates in them. All others must be equal.
MEASURED = ("*.stats.json", "training_log.jsonl", "memory.csv", "*.svg", "README.md")
ON_GPU = {"generate_answers", "train_student", "group_evaluate_banks", "group_evaluate_households"}


# The first test includes both runs, which take long on a busy machine.
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def runs(prepared, testbed, tmp_path_factory):
    """Two finished runs, made in parallel: one with the local profile, one with Slurm's.

    The attribute `jobs` of the second holds the fields of its Slurm jobs, with the rule of each.
    """
    local, clustered = (prepared.copy(tmp_path_factory.mktemp(name) / "run") for name in ("local", "clustered"))
    run = testbed.start(clustered, *ONE_THREAD)
    local.run()
    code, output = run.wait(timeout=1500)
    assert code == 0, output
    rules = submitted(output)
    clustered.jobs = [job | {"rule": rules[job["JobId"]]} for job in testbed.ended() if job["JobId"] in rules]
    return local, clustered


@pytest.fixture
def local(runs):
    return runs[0]


@pytest.fixture
def clustered(runs):
    return runs[1]


def data_files(directory):
    folders = ("artifacts/distill_data", "output")
    return {
        path.relative_to(directory.path): path.read_bytes()
        for folder in folders
        for path in sorted((directory.path / folder).rglob("*"))
        if path.is_file() and not any(path.match(pattern) for pattern in MEASURED)
    }


def test_the_files_are_those_of_one_machine(local, clustered):
    expected, found = data_files(local), data_files(clustered)
    assert len(expected) > 50
    assert found.keys() == expected.keys()
    assert [str(path) for path in expected if found[path] != expected[path]] == []


def test_short_jobs_are_grouped(clustered):
    groups = ("prepare", "collect", "evaluate")
    expected = {f"group_{group}_{category}": 1 for group in groups for category in ("banks", "households")}
    expected |= {"generate_answers": 2, "train_student": 2, "group_report": 1}
    assert Counter(job["rule"] for job in clustered.jobs) == expected
    assert {job["JobState"] for job in clustered.jobs} == {"COMPLETED"}


def test_a_group_requests_the_time_of_all_its_jobs_and_the_cpus_of_one(clustered):
    """Its jobs run one after another."""
    (group,) = [job for job in clustered.jobs if job["rule"] == "group_evaluate_banks"]
    minutes = [240] * 3 + [15] * 3 + [15]  # predictions, scores, page of answers
    assert group["TimeLimit"] == str(sum(minutes))
    assert group["ProcCnt"] == "1"


def test_a_requeued_group_generates_no_answer_twice(clustered, testbed, tmp_path):
    """Snakemake reruns its finished jobs, since it forces the jobs that it submits; their answers are cached."""
    directory = clustered.copy(tmp_path / "run")
    shutil.rmtree(directory / "output/evaluation")
    shutil.rmtree(directory / "artifacts/predicted")
    log = directory / "logs/predict_answers/teacher/banks.log"
    log.unlink()
    run = testbed.start(directory, "output/evaluation/teacher/banks.metrics.json", *ONE_THREAD)
    wait_until(lambda: log.exists() and "predictions: " in log.read_text(), why="for a prediction to end")
    ((job,),) = testbed.queue("%i")
    testbed.run("scontrol", "requeue", job)
    code, output = run.wait()
    assert code == 0, output
    assert testbed.restarts(job) == 1
    text = log.read_text()
    assert re.search(r" (\d+) answers: \1 in the cache, 0 to generate", text), text
    name = "output/evaluation/teacher/banks.predictions.jsonl"
    assert (directory / name).read_bytes() == (clustered / name).read_bytes()


def test_both_nodes_work_and_each_gpu_has_one_rule_at_a_time(testbed, clustered):
    """This includes the rules of a group: two models evaluated in one job are never in memory together."""
    on_gpu = {job["JobId"]: job["NodeList"] for job in clustered.jobs if job["rule"] in ON_GPU}
    assert set(on_gpu.values()) == {"n1", "n2"}
    steps = {node: [step for step in testbed.steps(node) if step[0] in on_gpu] for node in ("n1", "n2")}
    for of_node in steps.values():
        for (_, _, end), (_, launch, _) in pairwise(of_node):
            # On a busy machine, Slurm logs a step's end after the launch of the next one; a rule takes many seconds.
            assert end - launch < timedelta(seconds=2)
    # 2 generations and 2 trainings; 2 evaluations of 3 predictions, 3 scores and a page of answers.
    assert sum(map(len, steps.values())) == 4 + 2 * 7


def test_a_copy_of_the_run_reruns_nothing_with_either_profile(clustered, tmp_path):
    """Checksums are recorded for files that Slurm jobs made, so new time stamps do not matter."""
    copy = clustered.copy(tmp_path / "copy")
    assert "Nothing to be done" in copy.run("--dry-run")
    arguments = ["--configfile", copy.configfile, "--directory", copy.path]
    assert "Nothing to be done" in snakemake("--profile", "slurm", *ONE_THREAD, *arguments, "--dry-run")
