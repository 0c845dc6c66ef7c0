"""Models named with their hub: planned without a download, and downloaded before they are loaded."""

import json

import pytest
from hub_server import HubServer
from running import CONFIG

NAMES = {"teacher": "modelscope:owner/teacher", "student": "hf:owner/student@main"}


@pytest.mark.slow
def test_models_are_downloaded_once_and_before_they_are_loaded(fresh, tmp_path, monkeypatch):
    directory = fresh.copy(tmp_path / "run")
    (directory / "models").rename(tmp_path / "hub")
    train = CONFIG["students"]["student_kd"]["train"]
    directory.configure(
        CONFIG
        | {"categories": ["banks"], "teacher": CONFIG["teacher"] | {"model": NAMES["teacher"], "adapter": None}}
        | {"students": {"kd": {"model": NAMES["student"], "method": "forward_kl", "train": train}}}
    )
    plan = directory.planned()
    assert plan.count(("download_model", "")) == 2
    assert ("train_student", "banks") in plan
    trained = "output/kd/banks/model.safetensors"
    with HubServer({f"owner/{name}": tmp_path / "hub" / name for name in NAMES}) as hub:
        monkeypatch.setattr("running.environment", environment_with(hub.environment()))
        output = directory.run(trained)
        served = dict(hub.served)
        # The content of a model's manifest, not its time stamp, reruns the jobs that load the model.
        manifest = directory / "models/modelscope/owner/teacher/download.json"
        manifest.touch()
        assert "Nothing to be done" in directory.run(trained)
        assert hub.served == served
    assert output.index("rule download_model") < output.index("rule generate_answers")
    student = json.loads((directory / "models/hf/owner/student@main/download.json").read_text())
    assert student["source"] == NAMES["student"]
    assert (directory / trained).exists()
    manifest.write_text(manifest.read_text().replace('"commit": "master"', '"commit": "other"'))
    assert ("generate_answers", "banks") in directory.planned()


def environment_with(more):
    from running import environment

    found = environment() | more
    return lambda: found


def test_a_model_that_a_hub_lacks_fails_with_its_name(fresh, tmp_path, monkeypatch):
    directory = fresh.copy(tmp_path / "run")
    directory.configure(CONFIG | {"teacher": CONFIG["teacher"] | {"model": NAMES["teacher"], "adapter": None}})
    with HubServer({}) as hub:
        monkeypatch.setattr("running.environment", environment_with(hub.environment()))
        output = directory.run("artifacts/distill_data/raw/teacher_outputs_banks.jsonl", check=False)
    assert "error: modelscope:owner/teacher: no such model or revision 'master' at http://127.0.0.1" in output
    assert "Traceback" not in output
