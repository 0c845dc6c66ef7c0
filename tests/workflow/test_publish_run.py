"""Exported models that are uploaded to a hub on loopback."""

import json

import pytest
from hub_uploads import UploadServer
from running import environment, merge

EXPORT = {"variants": ["full", "int8"], "students": ["student_kd"], "push_to": "owner/{student}-{category}"}


@pytest.fixture
def exported(copy):
    """The finished run with two variants to export."""
    copy.configure(merge(copy.config, {"categories": ["banks"], "export": EXPORT}))
    return copy


def test_models_are_published_when_asked_and_not_again(exported, tmp_path, monkeypatch):
    assert "publish_model" not in {rule for rule, _ in exported.planned()}
    plan = exported.run("publish", "--dry-run")
    assert "Uploading output/export/student_kd/banks/full: --repository owner/student_kd-banks --private" in plan
    assert "Uploading output/export/student_kd/banks/int8: --repository owner/student_kd-banks-int8 --private" in plan
    with UploadServer(tmp_path / "hub", token="secret") as hub:
        variables = environment() | hub.environment()
        monkeypatch.setattr("running.environment", lambda: variables)
        exported.run("publish")
        names = ("owner/student_kd-banks", "owner/student_kd-banks-int8")
        assert hub.private == dict.fromkeys(names, True)
        for variant, name in zip(EXPORT["variants"], names, strict=True):
            folder = exported / f"output/export/student_kd/banks/{variant}"
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            assert {path.name: path.read_bytes() for path in hub.models[name].iterdir()} == files
            assert {"README.md", "config.json", "model.safetensors"} <= files.keys()
            record = json.loads(folder.with_name(f"{variant}.published.json").read_text())
            assert record["repository"] == name
        hub.sent.clear()
        assert "Nothing to be done" in exported.run("publish")
        assert hub.sent == []


@pytest.mark.parametrize(
    ("export", "message"),
    [
        (None, "publish: expected export.push_to in the configuration"),
        (EXPORT | {"push_to": "owner/{student}", "variants": ["full"], "students": None}, None),
        (EXPORT | {"push_to": "owner/model"}, None),
        (
            EXPORT | {"push_to": "owner/model", "students": None},
            "export.push_to: expected a repository for each model, found owner/model for "
            "output/export/student_kd/banks/full and output/export/student_seqkd/banks/full",
        ),
    ],
    ids=["no name", "a student each", "one student", "no student in the name"],
)
def test_each_model_has_a_repository_of_its_own(exported, export, message):
    exported.configure(exported.config | {"export": export})
    output = exported.run("publish", "--dry-run", check=message is None)
    assert message is None or message in output
