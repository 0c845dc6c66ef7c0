"""vLLM over the nodes of a Slurm job: the commands that start it, with a fake scontrol."""

import pytest

from distill.common.errors import InputError
from distill.generation.vllm_nodes import list_arguments, list_nodes, list_other_nodes

COMMAND = ["vllm", "serve", "m", "--tensor-parallel-size", "2"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A Slurm job with the nodes n1 and n2, of which this is n2."""
    for name, arguments, answer in (
        ("scontrol", "show hostnames n[1-2]", "n1\\nn2\\n"),
        ("squeue", "--noheader --jobs 17 --format %N", "n[1-2]\\n"),
    ):
        program = tmp_path / name
        others = 'echo "cpu=2,gres/gpu=2"'
        program.write_text(f'#!/bin/sh\nif [ "$*" = "{arguments}" ]; then printf "{answer}"; else {others}; fi\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    variables = {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "n2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_single_node_needs_no_job():
    assert list_arguments(1) == []
    assert list_other_nodes(COMMAND, 1, 1) == []


def test_this_node_serves_and_srun_starts_the_others(job):
    assert list_nodes(2) == ["n2", "n1"]
    group = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "n2", "--master-port", "20017"]
    assert list_arguments(2) == [*group, "--distributed-executor-backend", "mp"]
    (other,) = list_other_nodes(COMMAND, 2, 1)
    assert other[:3] == ["srun", "--overlap", "--nodes=1"]
    assert {"--nodelist=n1", "--gpus=1"} <= set(other)
    place = other.index("vllm")
    assert other[place : place + len(COMMAND)] == COMMAND
    assert other[-1] == "--headless"
    assert other[other.index("--node-rank") + 1] == "1"


def test_too_few_nodes_are_named(job):
    with pytest.raises(InputError, match="expected a Slurm job with 3 nodes, found n1, n2"):
        list_nodes(3)


def test_several_nodes_need_a_slurm_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match="expected a Slurm job with 2 nodes .*, found none"):
        list_nodes(2)
