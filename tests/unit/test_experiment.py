"""Which models a job loads, and which of them the workflow makes itself."""

import pytest
import yaml

from distill import experiment
from distill.config import SCHEMA, check_config

DEMO = SCHEMA.parents[2] / "config/demo.yaml"


@pytest.fixture
def config():
    students = {
        "kd": {"model": "models/student"},
        "seqkd": {"model": "owner/student", "method": "seqkd"},
        "further": {"model": "output/kd/banks", "method": "seqkd"},
    }
    teacher = {"model": "models/teacher", "adapter": "lora/{category}"}
    return check_config({"categories": ["banks", "funds"], "teacher": teacher, "students": students})


def test_jobs_load_the_models_that_they_name(config):
    teacher = ["models/teacher", "lora/banks"]
    assert experiment.get_teacher_models(config, "banks") == teacher
    assert experiment.get_training_models(config, "kd", "banks") == ["models/student", *teacher]
    assert experiment.get_training_models(config, "seqkd", "banks") == ["owner/student"]
    found = [experiment.get_predicting_models(config, name, "banks") for name in ("teacher", "kd", "seqkd_base")]
    assert found == [teacher, ["output/kd/banks"], ["owner/student"]]


def test_a_servers_model_is_loaded_by_no_job(config):
    config["teacher"] |= {"engine": "openai", "adapter": None}
    assert experiment.get_teacher_models(config, "banks") == []


def test_only_the_workflows_own_models_are_files_to_wait_for(config):
    names = ("models/teacher", "models/student", "models/adapters/banks", "owner/student", "output/other/banks")
    assert [experiment.get_made_files(config, name) for name in names] == [[]] * 5
    assert "output/kd/banks/model.safetensors" in experiment.get_made_files(config, "output/kd/banks")
    demo = check_config(yaml.safe_load(DEMO.read_text()))
    assert experiment.get_made_files(demo, "models/teacher")[1] == "models/teacher/model.safetensors"
    assert experiment.get_made_files(demo, "models/adapters/banks")[1].endswith("banks/adapter_model.safetensors")
    assert experiment.get_made_files(demo, "models/mine") == []
