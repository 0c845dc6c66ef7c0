"""The whole workflow on two nodes: the same files as on one machine, one job a GPU, few submissions."""

import re
import shutil
from collections import Counter

import pytest
from running import ONE_THREAD, snakemake
from slurm_testbed import submitted, wait_until

# What counts seconds or tells the hour; all else is data.
MEASURED = ("*.stats.json", "training_log.jsonl", "*.svg", "README.md")
ON_GPU = {"generate_answers", "train_student", "group_evaluate_banks", "group_evaluate_households"}


# The first test has both runs before it; where a machine does other work beside, starts of torch add up.
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def runs(prepared, testbed, tmp_path_factory):
    """Directories run through, beside each other, by the profile for one machine and by that for Slurm.

    The second one's `jobs` are those that it submitted, Slurm's account with the rule of each.
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
    expected |= {"generate_answers": 2, "train_student": 2, "group_evaluate_all": 1, "group_report": 1}
    assert Counter(job["rule"] for job in clustered.jobs) == expected
    assert {job["JobState"] for job in clustered.jobs} == {"COMPLETED"}


def test_a_group_asks_for_the_time_of_its_jobs_together_and_the_processors_of_one(clustered):
    """They run one after the other."""
    (group,) = [job for job in clustered.jobs if job["rule"] == "group_evaluate_banks"]
    minutes = [240] * 3 + [30] * 3 + [15]  # predictions, scores, page of answers
    assert group["TimeLimit"] == str(sum(minutes))
    assert group["ProcCnt"] == "1"


def test_a_group_that_slurm_starts_again_asks_no_model_twice(clustered, testbed, tmp_path):
    """Its finished jobs run again, since Snakemake forces what it submits: they take what they have kept."""
    directory = clustered.copy(tmp_path / "run")
    shutil.rmtree(directory / "output/evaluation")
    shutil.rmtree(directory / "artifacts/predicted")
    log = directory / "logs/predict_answers/teacher/banks.log"
    log.unlink()
    run = testbed.start(directory, "output/evaluation/teacher/banks.metrics.json", *ONE_THREAD)
    wait_until(lambda: log.exists() and "predictions: " in log.read_text(), why="for a prediction to end")
    ((job,),) = testbed.queue("%i")
    testbed.run("scontrol", "requeue", job)
    code, output = run.wait(timeout=300)
    assert code == 0, output
    assert testbed.restarts(job) == 1
    text = log.read_text()
    assert re.search(r" (\d+) answers: \1 in the cache, 0 to generate", text), text
    name = "output/evaluation/teacher/banks.predictions.jsonl"
    assert (directory / name).read_bytes() == (clustered / name).read_bytes()


def test_both_nodes_work_and_each_gpu_has_one_rule_at_a_time(testbed, clustered):
    """Those of a group, too: models that are evaluated in one job are not in memory together."""
    on_gpu = {job["JobId"]: job["NodeList"] for job in clustered.jobs if job["rule"] in ON_GPU}
    assert set(on_gpu.values()) == {"n1", "n2"}
    count = 0
    for node in ("n1", "n2"):
        running = []
        for event, job in testbed.steps(node):
            if job in on_gpu and event == "launch":
                running.append(job)
                count += 1
            elif job in on_gpu:
                running.remove(job)
            assert len(running) <= 1
    # 2 generations, 2 trainings; in each evaluation 3 predictions, 3 scores, and the page of answers.
    assert count == 4 + 2 * 7


def test_afterwards_there_is_nothing_to_do_here_or_there(clustered, tmp_path):
    """Files that Slurm's jobs made have their checksums recorded: a copy with other time stamps reruns nothing."""
    copy = clustered.copy(tmp_path / "copy")
    assert "Nothing to be done" in copy.run("--dry-run")
    arguments = ["--configfile", copy.configfile, "--directory", copy.path]
    assert "Nothing to be done" in snakemake("--profile", "slurm", *ONE_THREAD, *arguments, "--dry-run")
