"""Uploads of exported models to a hub on loopback."""

import json

import pytest
from hub_uploads import UploadServer

import publish_model
from distill.common.errors import InputError
from distill.export.publish import push

FILES = {"README.md": b"# A card\n", "config.json": b"{}", "model.safetensors": b"\x00" * 2000}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "output/full"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with UploadServer(tmp_path / "hub", token="secret") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


def read_repository(hub, name="owner/student-banks"):
    return {path.name: path.read_bytes() for path in hub.models[name].iterdir()}


def test_all_files_are_in_a_new_private_repository(hub, model, tmp_path):
    record = tmp_path / "record.json"
    publish_model.main(["--model", str(model), "--repository", "owner/student-banks", "--out", str(record)])
    assert read_repository(hub) == FILES
    assert hub.private == {"owner/student-banks": True}
    assert json.loads(record.read_text()) == {
        "repository": "owner/student-banks",
        "url": f"{hub.url}/owner/student-banks",
        "commit": f"{1:040x}",
        "files": {name: len(content) for name, content in FILES.items()},
    }


def test_weights_that_the_hub_has_are_not_sent_again(hub, model):
    push(model, "owner/student-banks", private=False)
    assert hub.private == {"owner/student-banks": False}
    hub.sent.clear()
    (model / "README.md").write_text("# Another card\n")
    push(model, "owner/student-banks", private=False)
    assert [name for name in hub.sent if len(name) == 64] == []  # no weights, which are named by their digest
    assert read_repository(hub)["README.md"] == b"# Another card\n"
    assert len(hub.commit_messages["owner/student-banks"]) == 2


def test_a_public_repository_gets_nothing_that_should_be_private(hub, model):
    hub.create("owner/student-banks", private=False)
    with pytest.raises(InputError, match=r"expected a private repository.*export.push_private: false"):
        push(model, "owner/student-banks", private=True)
    assert read_repository(hub) == {}


def test_a_private_repository_stays_private(hub, model, caplog):
    hub.create("owner/student-banks", private=True)
    push(model, "owner/student-banks", private=False)
    assert "owner/student-banks is private and stays so" in caplog.text
    assert read_repository(hub) == FILES


def test_weights_from_elsewhere_are_named(hub, model, caplog):
    hub.create("owner/student-banks", private=True)
    for name in ("model-00001-of-00002.safetensors", "notes.txt"):
        (hub.models["owner/student-banks"] / name).touch()
    push(model, "owner/student-banks", private=True)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "model-00001-of-00002.safetensors" in warning
    assert "notes.txt" not in warning


def test_a_dry_run_lists_the_files_and_sends_nothing(hub, model, capsys):
    publish_model.main(["--model", str(model), "--repository", "owner/student-banks", "--dry-run"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert "owner/student-banks (private if it does not exist yet): 3 files, 2.01 kB" in head
    assert [line.split(":")[0].strip() for line in lines] == list(FILES)
    assert hub.models == {}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "HF_TOKEN: expected an access token with write permission"),
        ("other", "has no permission to write there"),
    ],
)
def test_a_missing_or_wrong_token_is_an_error(hub, model, monkeypatch, token, message):
    hub.create("owner/student-banks", private=True)
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=message):
        push(model, "owner/student-banks", private=True)
    assert read_repository(hub) == {}


def test_a_hub_that_cannot_be_reached_is_an_error(hub, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        push(model, "owner/student-banks", private=True)


def test_a_folder_without_a_card_is_refused(hub, model):
    (model / "README.md").unlink()
    with pytest.raises(InputError, match=r"expected the folder of an exported model with its card, README.md"):
        push(model, "owner/student-banks", private=True)
