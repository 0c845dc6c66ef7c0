"""Models named with their hub: planned with nothing downloaded, and fetched before they are loaded."""

import json

from hub_server import HubServer
from running import CONFIG

NAMES = {"teacher": "modelscope:owner/teacher", "student": "hf:owner/student@main"}


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
        directory.run(trained)
        assert hub.served == served
    assert output.index("rule download_model") < output.index("rule generate_answers")
    manifest = json.loads((directory / "models/hf/owner/student@main/download.json").read_text())
    assert manifest["source"] == NAMES["student"]
    assert (directory / trained).exists()
    # Another content of the manifest, not its time, runs again what loads the model.
    path = directory / "models/modelscope/owner/teacher/download.json"
    path.touch()
    assert ("generate_answers", "banks") not in directory.planned()
    path.write_text(path.read_text().replace('"commit": "master"', '"commit": "other"'))
    assert ("generate_answers", "banks") in directory.planned()


def environment_with(more):
    from running import environment

    found = environment() | more
    return lambda: found


def test_a_model_that_is_not_to_be_had_ends_its_job_alone(fresh, tmp_path, monkeypatch):
    directory = fresh.copy(tmp_path / "run")
    directory.configure(CONFIG | {"teacher": CONFIG["teacher"] | {"model": NAMES["teacher"], "adapter": None}})
    with HubServer({}) as hub:
        monkeypatch.setattr("running.environment", environment_with(hub.environment()))
        output = directory.run("artifacts/distill_data/raw/teacher_outputs_banks.jsonl", check=False)
    assert "error: modelscope:owner/teacher: no such model or revision 'master' at http://127.0.0.1" in output
    assert "Traceback" not in output
