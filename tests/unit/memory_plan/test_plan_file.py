"""Memory plans as files, requests of memory, and changes that make a stage fit."""

from dataclasses import replace

import pytest

from distill.common.errors import InputError
from distill.memory_plan.changes import list_changes
from distill.memory_plan.devices import CONTEXT, GIB, find_device
from distill.memory_plan.plan_file import (
    HOST,
    Estimate,
    Plan,
    combine,
    describe_stage,
    find_estimates,
    get_key,
    read_plan,
    request_mb,
    write_plan,
)
from distill.memory_plan.stage import Generating, ModelShape, Stage, Training
from distill.memory_plan.table import render_plan
from distill.models.memory import INTEGRATED_RESERVE
from distill.plan.known_models import KNOWN_MODELS

TEACHER = ModelShape(name="teacher", config=KNOWN_MODELS["Qwen/Qwen2.5-7B-Instruct"])
STUDENT = ModelShape(name="student", config=KNOWN_MODELS["Qwen/Qwen1.5-1.8B-Chat"])
TRAINING = Training(
    student=STUDENT,
    teacher=TEACHER,
    method="forward_kl",
    signal="online",
    top_k=64,
    temperature=2.0,
    alpha=0.5,
    parameters={},
    lora=None,
    optimizer="adamw_torch_fused",
    precision="bf16",
    batch_size=2,
    gradient_checkpointing=False,
    prompt_tokens=1000,
    answer_tokens=200,
)
ANSWERS = Generating(model=TEACHER, batch_size=None, temperature=0.7, top_p=1.0, prompt_tokens=1000, answer_tokens=512)
SMALL = Estimate(weights=GIB, live=2 * GIB, reserved=3 * GIB, host=GIB, where="prefill", rows=64, fits="yes")
LARGE = replace(SMALL, live=40 * GIB, reserved=41 * GIB, host=8 * GIB, where="optimizer", fits="no")


def make_plan(device="a100-40"):
    plan = Plan(device, (None, 300), "version")
    plan.estimates = {get_key(ANSWERS, device): SMALL, get_key(TRAINING, device): LARGE}
    plan.changes = {get_key(TRAINING, device): [("optimizer: adamw_bnb_8bit", replace(SMALL, reserved=30 * GIB))]}
    return plan


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = make_plan()
    stage = Stage(rule="generate_answers", name="answers", work=(ANSWERS,))
    plan.stages = [describe_stage(plan, stage, find_device("a100-40"))]
    assert plan.stages[0]["reserved"] == 3 * GIB
    write_plan(tmp_path / "new/plan.json", plan)
    assert read_plan(tmp_path / "new/plan.json") == plan
    assert read_plan(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["", "[]", '{"device": "cpu"}', '{"device": "cpu", "lengths": 3}'])
def test_another_file_is_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan.json: expected a memory plan .*; delete it"):
        read_plan(tmp_path / "plan.json")


def test_a_key_is_of_what_decides_the_memory():
    renamed = replace(TRAINING, student=replace(STUDENT, name="other"))
    assert get_key(TRAINING, "a100-40") == get_key(renamed, "a100-40")
    assert get_key(TRAINING, "a100-40") != get_key(TRAINING, "a100-80")
    others = {"batch_size": 1, "optimizer": "adafactor", "teacher": None, "answer_tokens": 201}
    keys = {get_key(replace(TRAINING, **{name: value}), "a100-40") for name, value in others.items()}
    assert len(keys) == len(others)
    assert get_key(TRAINING, "a100-40") not in keys


def test_a_stage_takes_what_its_largest_work_takes():
    stage = Stage(rule="predict_answers", name="evaluation", work=(ANSWERS, TRAINING))
    assert combine(find_estimates(make_plan(), stage)) == LARGE
    unknown = replace(ANSWERS, prompt_tokens=1)
    assert find_estimates(make_plan(), replace(stage, work=(ANSWERS, unknown))) == []
    assert describe_stage(make_plan(), replace(stage, work=(unknown,)), find_device("a100-40")) is None


def test_requests_are_of_the_hosts_memory():
    """On a GPU of its own, what passes through the host; on shared memory and on a CPU, all of it."""
    stage = Stage(rule="train_student", name="training", work=(TRAINING,))
    on_card = HOST + 8 * GIB
    assert on_card / 1e6 <= request_mb(stage, [SMALL, LARGE], find_device("a100-40")) < on_card / 1e6 + 1000
    shared = HOST + 41 * GIB + find_device("gb10-128").reserved
    assert shared / 1e6 <= request_mb(stage, [SMALL, LARGE], find_device("gb10-128")) < shared / 1e6 + 1000
    four = replace(stage, work=(replace(TRAINING, processes=4),))
    assert 4 * on_card / 1e6 <= request_mb(four, [SMALL, LARGE], find_device("a100-40")) < 4 * on_card / 1e6 + 1000


def test_devices():
    assert find_device("24GB").memory == 24 * 10**9
    assert find_device("24GiB").usable == 24 * GIB - CONTEXT
    assert find_device("gb10-128").is_unified
    assert find_device("gb10-128").reserved == CONTEXT + INTEGRATED_RESERVE
    assert find_device("cpu").kind == "cpu"
    with pytest.raises(InputError, match=r"--device: expected a100-40 \| .* \| cpu \| a size such as 24GB"):
        find_device("a100")


def test_changes_go_from_the_smallest_on():
    texts = [change.text.partition(":")[0] for change in list_changes(TRAINING)]
    assert texts == [
        "gradient_checkpointing",
        "optimizer",
        "batch_size",
        "teacher_quantization",
        "teacher_quantization",
        "signal",
        "lora",
    ]
    quantized = replace(TRAINING, teacher=replace(TEACHER, quantization="int8"), gradient_checkpointing=True)
    assert [change.text for change in list_changes(quantized)].count("teacher_quantization: int8") == 0
    smallest = replace(quantized, signal="topk", batch_size=1, optimizer="adamw_bnb_8bit")
    assert [change.text.partition(":")[0] for change in list_changes(smallest)] == ["lora"]
    texts = [change.text for change in list_changes(ANSWERS)]
    assert texts == ["teacher.quantization: int8", "teacher.quantization: nf4"]
    assert list(list_changes(replace(ANSWERS, model=STUDENT))) == []  # no setting quantizes a student
    for change in list_changes(TRAINING):
        assert list(list_changes(change.apply(TRAINING))) != list(list_changes(TRAINING)), change.text


def test_the_table_names_what_does_not_fit_and_what_helps():
    stages = [
        Stage(rule="generate_answers", name="teacher's answers", work=(ANSWERS,)),
        Stage(rule="train_student", name="training of s", work=(TRAINING,)),
        "models/x: the shape of the model is unknown",
    ]
    lines = render_plan(make_plan(), stages, find_device("a100-40")).splitlines()
    assert lines[0] == "Memory on a100-40: 39.4 GiB, of which 38.8 GiB for tensors"
    assert [cell.strip() for cell in lines[4].strip("|").split("|")] == [
        "teacher's answers", "64", "1.0 GiB", "2.0 GiB", "3.0 GiB", "yes", "prefill",
    ]  # fmt: skip
    assert len({len(line) for line in lines[2:6]}) == 1
    assert "training of s does not fit with a tenth to spare. It would take, with:" in lines
    assert "  optimizer: adamw_bnb_8bit: 30.0 GiB reserved, fits: yes" in lines
    assert "Not planned: models/x: the shape of the model is unknown" in lines
    replicas = [Stage(rule="train_student", name=f"training of s-seed{seed}", work=(TRAINING,)) for seed in (1, 2)]
    text = render_plan(make_plan(), replicas, find_device("a100-40"))
    assert text.count("training of s-seed1 and 1 more do not fit with a tenth to spare. Each would take, with:") == 1
    assert text.count("adamw_bnb_8bit") == 1
