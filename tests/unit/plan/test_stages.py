"""The stages of an experiment, and the memory that their jobs request."""

import json

import pytest
import yaml
from running import ROOT

from distill.common.errors import InputError
from distill.memory_plan.plan_file import PLAN_FILE, Estimate, Plan, get_key, write_plan
from distill.memory_plan.stage import Generating, Loading, Reading, Training
from distill.plan.memory_requests import MemoryRequests
from distill.plan.model_shapes import find_config, keep_layers
from distill.plan.schema import check_config
from distill.plan.stages import Lengths, StageLister

GIB = 2**30


def load(name):
    return check_config(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text(encoding="utf-8")))


def list_stages(config, lengths=Lengths()):  # noqa: B008 - frozen
    return list(StageLister(config, lengths).list_stages())


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stages_of_the_default_configuration():
    stages = list_stages(load("config"))
    assert [(stage.rule, stage.wildcards) for stage in stages] == [
        ("generate_answers", {}),
        ("train_student", {"student": "student_kd"}),
        ("predict_answers", {"model": "teacher"}),
        ("predict_answers", {"model": "student_kd"}),
        ("predict_answers", {"model": "student_kd_base"}),
    ]
    (training,) = stages[1].work
    assert isinstance(training, Training)
    assert (training.prompt_tokens, training.answer_tokens) == (1536, 512)
    assert training.teacher.quantization == "int8"
    assert [model.config["num_hidden_layers"] for model in training.models] == [24, 28]
    generating, reading = stages[3].work
    assert isinstance(generating, Generating)
    assert isinstance(reading, Reading)
    assert generating.model.dtype == "bfloat16"
    assert generating.batch_size is None


def test_the_memory_of_replicas_is_measured_once():
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    train = raw["students"]["student_kd"]["train"]
    del train["seed"]
    train["seeds"] = [1, 2]
    stages = list_stages(check_config(raw))
    replicas = ["student_kd-seed1", "student_kd-seed2"]
    for rule, wildcard in (("train_student", "student"), ("predict_answers", "model")):
        alike = [stage for stage in stages if stage.rule == rule and stage.wildcards.get(wildcard) in replicas]
        assert [stage.wildcards[wildcard] for stage in alike] == replicas
        assert len({tuple(get_key(work, "a100-40") for work in stage.work) for stage in alike}) == 1
    bases = [stage.wildcards["model"] for stage in stages if "base" in stage.wildcards.get("model", "")]
    assert bases == ["student_kd_base"]


def test_the_stages_of_question_answering():
    stages = list_stages(load("qa"))
    signal = next(stage for stage in stages if stage.rule == "compute_signal")
    assert signal.wildcards == {"signal": "topk_64_t1"}
    assert signal.work[0].temperatures == (1.0,)
    assert signal.work[0].model.quantization == "nf4"
    quantization = {stage.wildcards["model"]: stage.work[0].model.quantization for stage in stages
                    if stage.rule == "predict_answers"}  # fmt: skip
    assert quantization["student_lora_nf4"] == "nf4"
    assert quantization["student_lora_gguf"] == "none"
    assert "student_full_base" not in quantization  # it shares the answers of another student's base
    export = next(stage for stage in stages if stage.wildcards == {"student": "student_kd", "variant": "int8"})
    assert [model.quantization for model in export.work[0].models] == ["none", "int8"]
    assert isinstance(export.work[0], Loading)
    assert any(stage.rule == "judge_answers" for stage in stages)
    seqkd = next(stage for stage in stages if stage.wildcards == {"student": "student_full"})
    assert seqkd.work[0].teacher is None


def test_given_lengths_replace_those_of_the_configuration():
    stages = list_stages(load("config"), Lengths(1000, 200))
    works = [work for stage in stages for work in stage.work]
    assert {(work.prompt_tokens, work.answer_tokens) for work in works} == {(1000, 200)}


def test_models_of_the_demo_are_planned_before_they_are_made():
    stages = list_stages(load("demo"))
    assert {stage.work[0].models[0].config["num_hidden_layers"] for stage in stages} == {2, 4}
    assert all(not isinstance(stage, str) for stage in stages)


def test_a_local_config_comes_first(directory):
    folder = directory / "models/teacher"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 7}))
    assert find_config(load("demo"), "models/teacher", lambda model: None) == {"num_hidden_layers": 7}
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="models/teacher/config.json: expected a JSON object"):
        find_config(load("demo"), "models/teacher", lambda model: None)


def test_unknown_models_are_asked_for_by_hub_id_alone():
    asked = []

    def read_hub(model):
        asked.append(model)

    config = load("config")
    unknown = ("someone/unheard", "models/hf/someone/unheard", "models/modelscope/a/b", "models/own", "/data/own")
    for model in unknown:
        with pytest.raises(InputError, match=f"{model}: the shape of the model is unknown until its config.json"):
            find_config(config, model, read_hub)
    assert asked == ["someone/unheard", "someone/unheard"]
    assert find_config(config, "models/hf/Qwen/Qwen2.5-72B-Instruct", read_hub)["num_hidden_layers"] == 80


def test_a_model_of_unknown_shape_is_named_once():
    config = load("config")
    config["teacher"]["model"] = "models/own"
    found = list_stages(config)
    assert [stage for stage in found if isinstance(stage, str)] == [
        "models/own: the shape of the model is unknown until its config.json is here or can be downloaded"
    ]


def test_weights_that_are_stored_quantized_are_not_planned_as_others(directory):
    (directory / "models/own").mkdir(parents=True)
    (directory / "models/own/config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match=r"models/own: weights that are stored quantized \(gptq\) cannot be planned"):
        find_config(load("config"), "models/own", lambda model: None)


def test_what_the_plan_leaves_out_is_named():
    config = load("config")
    config["students"]["student_kd"]["on_policy_fraction"] = 0.5
    (text,) = [stage for stage in list_stages(config) if isinstance(stage, str)]
    assert text.startswith("training of student_kd: the answers that it samples (on_policy_fraction)")


def test_layers_are_kept_in_nested_configurations():
    settings = {"text_config": {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "sizes": [1, 2, 3, 4]}}
    assert keep_layers(settings, 2) == {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"], "sizes": [1, 2, 3, 4]}
    }


# ---- Requests ----


def estimate(host):
    return Estimate(weights=0, live=0, reserved=GIB, host=host * GIB, where="", rows=1, fits="yes")


def test_without_a_plan_requests_are_the_defaults():
    assert MemoryRequests(load("config")).get("generate_answers", 32000, {"category": "banks"}) == 32000


def test_requests_follow_the_plan_of_this_configuration():
    config = load("config")
    plan = Plan("a100-40")
    for host, stage in enumerate(list_stages(config), start=10):
        plan.estimates |= {get_key(work, "a100-40"): estimate(host) for work in stage.work}
    write_plan(PLAN_FILE, plan)
    requests = MemoryRequests(config)
    answers = requests.get("generate_answers", 32000, {"category": "banks"})
    training = requests.get("train_student", 64000, {"student": "student_kd", "category": "banks"})
    assert 10 * GIB < answers * 10**6 < training * 10**6 < 20 * GIB
    asked = {"model": "student_kd_base", "category": "banks"}
    assert requests.get("answer_questions", 32000, asked) == requests.get("predict_answers", 32000, asked)
    assert requests.get("train_student", 64000, {"student": "other", "category": "banks"}) == 64000
    config["students"]["student_kd"]["train"]["batch_size"] = 1
    assert MemoryRequests(config).get("train_student", 64000, {"student": "student_kd", "category": "banks"}) == 64000


def test_a_base_that_shares_answers_requests_what_the_first_one_does():
    config = load("qa")
    plan = Plan("gb10-128")
    plan.estimates = {get_key(work, "gb10-128"): estimate(9) for stage in list_stages(config) for work in stage.work}
    write_plan(PLAN_FILE, plan)
    asked = {"model": "student_full_base", "category": "chinese"}
    assert MemoryRequests(config).get("answer_questions", 32000, asked) != 32000


def test_a_vllm_server_is_planned_by_its_weights():
    config = load("config")
    config["teacher"]["engine"] = "vllm"
    *stages, note = list_stages(config)
    served = [stage for stage in stages if stage.name.endswith("weights in vLLM")]
    assert [stage.rule for stage in served] == ["generate_answers", "predict_answers"]
    assert all(isinstance(work, Loading) for stage in served for work in stage.work)
    assert "gpu_memory_utilization, by default 0.92 in vLLM 0.32" in note
    config["teacher"]["vllm"]["arguments"] = {"quantization": "fp8", "gpu_memory_utilization": 0.5}
    *stages, note = list_stages(config)
    assert [stage for stage in stages if stage.name.endswith("weights in vLLM")] == []
    assert "gpu_memory_utilization, 0.5" in note
