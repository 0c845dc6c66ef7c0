"""GPUs, threads and nodes of jobs that load models."""

import pytest

from distill.generation import engine
from distill.plan import job_resources
from distill.plan.schema import check_config


def make_config(train=None, **changes):
    students = {"one": {"model": "owner/s", "method": "seqkd", "train": train or {}}}
    return check_config({"categories": ["banks"], "teacher": {"model": "owner/t"}, "students": students} | changes)


def test_jobs_on_the_cpu_request_no_gpu():
    assert job_resources.get_gpus(make_config()) == 1
    assert job_resources.get_gpus(make_config(device="cpu")) == 0
    assert job_resources.get_answering_gpus(make_config(device="cpu")) == 0
    assert job_resources.get_training_resources(make_config(device="cpu", train={"nodes": 2}), "one")["gpu"] == 0


def test_only_the_teacher_can_answer_on_a_server():
    config = make_config(teacher={"model": "t", "engine": "openai", "base_url": "http://n:1/v1"})
    found = [
        (job_resources.get_answering_gpus(config, model), job_resources.get_answering_threads(config, model))
        for model in ("teacher", "one", "one_base")
    ]
    assert found == [(0, 1), (1, 4), (1, 4)]


def test_resources_follow_what_an_engine_can_do(monkeypatch):
    """An engine that starts a server in its own job is planned like one that loads the model itself."""
    made_up = engine.EngineType("Starts a server.", None, loads_weights=True, gives_likelihoods=True, needs_gpu=True)
    monkeypatch.setitem(engine.ENGINES, "made_up", made_up)
    config = make_config(teacher={"model": "owner/t", "engine": "made_up"})
    assert job_resources.get_answering_gpus(config) == 1
    assert job_resources.get_answering_threads(config) == 4


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, {"gpu": 1}),
        ({"gpus_per_node": 4}, {"gpu": 4, "nodes": 1}),
        ({"nodes": 2}, {"gpu": 2, "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}),
        ({"nodes": 2, "gpus_per_node": 4}, {"gpu": 8, "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}),
    ],
)
def test_a_training_requests_its_nodes_and_all_their_gpus(train, expected):
    found = job_resources.get_training_resources(make_config(train=train), "one")
    assert {name: value for name, value in found.items() if value is not None} == expected


def test_a_vllm_server_requests_the_gpus_of_its_parallel_parts():
    def make(**vllm):
        return make_config(teacher={"model": "owner/t", "engine": "vllm", "vllm": vllm})

    parallel = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    for vllm, gpus in (({}, 1), ({"arguments": parallel}, 4), ({"arguments": parallel, "nodes": 2}, 4)):
        assert job_resources.get_answering_gpus(make(**vllm)) == gpus
        assert job_resources.get_serving_gpus(make(**vllm)) == gpus
    assert job_resources.get_answering_gpus(make(arguments=parallel), "one") == 1
    assert job_resources.get_answering_gpus(make(share=True)) == 0
    assert job_resources.get_answering_threads(make(share=True)) == 1
    two = make(arguments=parallel, nodes=2)
    expected = {"nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}
    assert job_resources.get_serving_nodes(two) == expected
    assert set(job_resources.get_serving_nodes(two, "one").values()) == {None}
    assert job_resources.spans_nodes(two)
    assert not job_resources.spans_nodes(make())
    own = make_config(
        teacher={"model": "owner/t", "engine": "vllm"},
        teachers={"banks": {"vllm": {"nodes": 2, "arguments": parallel}}},
    )
    assert job_resources.spans_nodes(own)
