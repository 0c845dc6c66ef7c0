"""A vLLM server over two nodes: both take part, and nothing is left on either, however the job ends."""

import json

import pytest
from running import CONFIG, ONE_THREAD, Directory, make_models, make_records, read_lines
from slurm_testbed import wait_until
from vllm_stand_in import ENGINE, VARIABLE, write_executable

TARGET = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"


@pytest.fixture
def directory(tmp_path, testbed, monkeypatch):
    """A directory with prompts, whose servers record their start in starts.jsonl; each node has a GPU in name only."""
    make_records(tmp_path, grpo=20, sft=20)
    make_models(tmp_path)
    vllm = {"executable": str(write_executable(tmp_path / "bin")), "nodes": 2}
    vllm["arguments"] = {"tensor_parallel_size": 2}
    teacher = CONFIG["teacher"] | {"adapter": None, "engine": "vllm", "vllm": vllm}
    students = {"student_seqkd": CONFIG["students"]["student_seqkd"]}
    config = CONFIG | {"categories": ["banks"], "device": "auto", "teacher": teacher, "students": students}
    monkeypatch.setenv(VARIABLE, json.dumps({"record": str(tmp_path / "starts.jsonl")}))
    return Directory(tmp_path, config)


def list_ranks(directory):
    """The ranks of the nodes on which a server has started."""
    path = directory / "starts.jsonl"
    records = read_lines(path) if path.exists() else []
    return sorted(record["options"]["node_rank"] for record in records if "options" in record)


def find_left(testbed):
    """What runs on either node of the stand-in."""
    return [line for box in ("n1", "n2") for line in testbed.run("pgrep", "-af", ENGINE, box=box, check=False).split()]


def test_both_nodes_take_part_and_nothing_is_left(directory, testbed):
    run = testbed.start(directory, TARGET, *ONE_THREAD)
    code, output = run.wait()
    assert code == 0, output
    assert list_ranks(directory) == [0, 1]
    assert len(read_lines(directory / TARGET)) > 10
    wait_until(lambda: not find_left(testbed), seconds=60, why="for the processes on the nodes to end")


def test_a_cancelled_job_leaves_nothing_on_the_nodes(directory, testbed, monkeypatch):
    hanging = {"record": str(directory / "starts.jsonl"), "never_ready": True}
    monkeypatch.setenv(VARIABLE, json.dumps(hanging))
    run = testbed.start(directory, TARGET, *ONE_THREAD)
    wait_until(lambda: list_ranks(directory) == [0, 1], why="for both nodes to start")
    assert find_left(testbed)
    for (job,) in testbed.queue("%i"):
        testbed.run("scancel", job)
    assert run.wait()[0] != 0
    wait_until(lambda: not find_left(testbed), seconds=90, why="for the processes on the nodes to end")
