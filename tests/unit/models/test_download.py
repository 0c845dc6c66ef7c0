"""Downloads from local hub servers that break connections, corrupt files and require tokens."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tenacity
from hub_server import COMMIT, HubServer
from running import SCRIPTS

import download_model
from distill.common import disk
from distill.common.errors import InputError
from distill.models import download as downloads
from distill.models.hub_files import RemoteFile, choose_files

SIZE = 3_000_000
SHARD = "model-00002-of-00002.safetensors"
HUBS = ("hf", "modelscope")
CHUNK = 2**16


@pytest.fixture
def model(tmp_path):
    """A model's repository, with its weights in several formats."""
    folder = tmp_path / "there"
    folder.mkdir()
    for name in ("model-00001-of-00002.safetensors", SHARD, "pytorch_model.bin", "model.gguf", "consolidated.pth"):
        (folder / name).write_bytes(hashlib.shake_128(name.encode()).digest(SIZE))
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "generation_config.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "README.md").write_text("# Model\n")
    return folder


@pytest.fixture
def hub(model, monkeypatch, tmp_path):
    """A server for both hubs; retries do not wait."""
    with HubServer({"owner/name": model}) as server:
        server.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(downloads, "WAIT", tenacity.wait_none())
        yield server


def fetch(tmp_path, source="hf:owner/name"):
    out = tmp_path / "here"
    download_model.main(["--source", source, "--out", str(out), "--workers", "3"])
    return out


def is_whole(out, model):
    manifest = json.loads((out / "download.json").read_text())
    for entry in manifest["files"]:
        data = (out / entry["name"]).read_bytes()
        assert data == (model / entry["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
    return manifest


@pytest.mark.parametrize("source", [f"{name}:owner/name" for name in HUBS])
def test_files_needed_for_loading_are_downloaded(hub, model, tmp_path, source):
    out = fetch(tmp_path, source)
    manifest = is_whole(out, model)
    names = [entry["name"] for entry in manifest["files"]]
    left_out = {"pytorch_model.bin", "model.gguf", "consolidated.pth"}
    assert names == sorted({path.name for path in model.iterdir()} - left_out)
    assert manifest["source"] == source
    assert manifest["commit"] == (COMMIT if source.startswith("hf") else "master")
    served = dict(hub.served)
    (out / "download.json").unlink()
    fetch(tmp_path, source)
    assert hub.served == served  # nothing was downloaded again


@pytest.mark.parametrize("name", HUBS)
def test_a_download_resumes_after_a_broken_connection(hub, model, tmp_path, name):
    hub.breaks[SHARD] = [1_000_000, 500_000, 700_000]
    is_whole(fetch(tmp_path, f"{name}:owner/name"), model)
    assert SIZE <= hub.served[SHARD] <= SIZE + 3 * CHUNK  # each time, the last chunk is downloaded again
    firsts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in hub.ranges(SHARD) if asked]
    assert len(firsts) == 3
    for first, broken in zip(firsts, (1_000_000, 500_000 + firsts[0], 700_000 + firsts[1]), strict=True):
        assert broken - CHUNK < first <= broken


@pytest.mark.parametrize("name", HUBS)
def test_a_killed_download_resumes(hub, model, tmp_path, name):
    large = 10 * SIZE
    (model / SHARD).write_bytes(hashlib.shake_128(b"large").digest(large))
    hub.delay = 0.005
    out = tmp_path / "here"
    command = [sys.executable, "download_model.py", "--source", f"{name}:owner/name", "--out", str(out)]
    process = subprocess.Popen(command, cwd=SCRIPTS, env=os.environ | hub.environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while hub.served.get(SHARD, 0) < large // 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (out / "download.json").exists()
    hub.delay = 0.0
    kept = hub.served[SHARD]
    is_whole(fetch(tmp_path, f"{name}:owner/name"), model)
    assert hub.served[SHARD] < large + 0.9 * kept  # bytes in flight or in a buffer are downloaded again
    assert any(asked and not asked.startswith("bytes=0-") for asked in hub.ranges(SHARD))


def start(hub, out, source="hf:owner/name"):
    command = [sys.executable, "download_model.py", "--source", source, "--out", str(out)]
    return subprocess.Popen(command, cwd=SCRIPTS, env=os.environ | hub.environment(), stderr=subprocess.PIPE, text=True)


def wait_for(hub, size, process):
    """Wait until the server has sent so many bytes of the shard."""
    deadline = time.monotonic() + 60
    while hub.served.get(SHARD, 0) < size:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize("name", HUBS)
def test_ctrl_c_stops_at_once_and_the_log_has_no_bars(hub, model, tmp_path, name):
    hub.delay = 0.05  # 2.3 s for the whole file
    with start(hub, tmp_path / "here", f"{name}:owner/name") as process:
        wait_for(hub, SIZE // 3, process)
        process.send_signal(signal.SIGINT)
        text = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "%|" not in text
    assert hub.served[SHARD] < SIZE
    assert not (tmp_path / "here" / SHARD).exists()


def test_two_processes_do_not_write_to_the_same_part(hub, model, tmp_path):
    hub.delay = 0.05
    out = tmp_path / "here"
    with start(hub, out) as first:
        wait_for(hub, 1, first)
        with start(hub, out) as second:
            line = second.stderr.readline()
            hub.delay = 0.0
        assert "another process downloads" in line
        assert second.returncode == 0
    assert first.returncode == 0
    is_whole(out, model)
    assert hub.served[SHARD] == SIZE


def test_files_of_another_revision_are_removed(hub, model, tmp_path):
    (model / "chat_template.jinja").write_text("old")
    out = fetch(tmp_path)
    (model / "chat_template.jinja").unlink()
    (out / "mine.txt").write_text("kept: loading a model does not read it")
    fetch(tmp_path)
    is_whole(out, model)
    assert not (out / "chat_template.jinja").exists()
    assert (out / "mine.txt").exists()


@pytest.mark.parametrize("name", HUBS)
def test_a_token_that_a_login_left_on_disk_is_not_used(hub, tmp_path, monkeypatch, name):
    from modelscope_hub import HubConfig

    hub.token = "hf_secret"
    HubConfig().save_token(hub.token)
    (tmp_path / "token").write_text(hub.token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match="TOKEN"):
        fetch(tmp_path, f"{name}:owner/name")


def test_duplicate_weights_are_left_out():
    files = [RemoteFile(name, 1, None) for name in ("consolidated.safetensors", "model.safetensors")]
    assert choose_files(files) == files[1:]
    assert choose_files(files[:1]) == files[:1]


@pytest.mark.parametrize("name", HUBS)
def test_a_corrupt_file_is_downloaded_again(hub, model, tmp_path, name):
    hub.spoiled[SHARD] = 2
    hub.spoiled["config.json"] = 1
    is_whole(fetch(tmp_path, f"{name}:owner/name"), model)


@pytest.mark.parametrize("name", HUBS)
def test_a_file_that_stays_corrupt_is_an_error_and_others_are_kept(hub, model, tmp_path, name):
    hub.spoiled[SHARD] = 10**6
    with pytest.raises(InputError) as error:
        fetch(tmp_path, f"{name}:owner/name")
    right = hashlib.sha256((model / SHARD).read_bytes()).hexdigest()
    assert f"{SHARD}: expected checksum {right}, found " in str(error.value)
    assert f"{name}:owner/name: " in str(error.value)
    out = tmp_path / "here"
    assert not (out / "download.json").exists()
    assert not (out / SHARD).exists()
    hub.spoiled.clear()
    before = hub.served["model-00001-of-00002.safetensors"]
    is_whole(fetch(tmp_path, f"{name}:owner/name"), model)
    assert hub.served["model-00001-of-00002.safetensors"] == before == SIZE


@pytest.mark.parametrize(("name", "variable"), [("hf", "HF_TOKEN"), ("modelscope", "MODELSCOPE_API_TOKEN")])
def test_tokens_come_from_the_environment_only(hub, model, tmp_path, monkeypatch, caplog, name, variable):
    hub.token = "hf_secret"
    with pytest.raises(InputError, match=variable):
        fetch(tmp_path, f"{name}:owner/name")
    monkeypatch.setenv(variable, "hf_secret")
    with caplog.at_level("DEBUG", logger="distill"):
        out = fetch(tmp_path, f"{name}:owner/name")
    is_whole(out, model)
    assert "hf_secret" not in caplog.text
    assert all(b"hf_secret" not in path.read_bytes() for path in tmp_path.glob("here/**/*") if path.is_file())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:owner/other", "no such model at http"),
        ("hf:owner/name@nowhere", "expected a branch, tag or commit of the model, found 'nowhere'"),
        ("modelscope:owner/other", "no such model or revision 'master'"),
        ("hf:name", "expected hf:OWNER/NAME or modelscope:OWNER/NAME"),
    ],
)
def test_missing_models_and_revisions_are_errors(hub, tmp_path, source, message):
    with pytest.raises(InputError, match=message):
        fetch(tmp_path, source)


@pytest.mark.parametrize("name", HUBS)
def test_an_unreachable_hub_is_an_error(hub, tmp_path, name, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("modelscope_hub.constants.API_MAX_RETRIES", 0, raising=False)
    with pytest.raises(InputError, match="cannot be reached"):
        fetch(tmp_path, f"{name}:owner/name")


def test_a_full_disk_is_an_error_before_the_download(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "find_free", lambda _: 10)
    with pytest.raises(InputError, match=r"expected .*B of free disk for the download, found 10 B"):
        fetch(tmp_path)
    assert SHARD not in hub.served


def test_a_repository_without_weights_is_rejected(hub, model, tmp_path):
    for path in [*model.glob("*.safetensors"), *model.glob("*.bin")]:
        path.unlink()
    with pytest.raises(InputError, match="hf:owner/name: expected weights"):
        fetch(tmp_path)


def test_pickled_weights_are_downloaded_if_there_are_no_others(hub, model, tmp_path):
    for path in model.glob("*.safetensors"):
        path.unlink()
    names = [entry["name"] for entry in is_whole(fetch(tmp_path), model)["files"]]
    assert "pytorch_model.bin" in names
    assert not Path(tmp_path / "here/model.gguf").exists()


def test_a_folder_of_the_user_is_not_changed(hub, tmp_path):
    own = tmp_path / "here/pytorch_model.bin"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(InputError, match="expected a new folder or an earlier download"):
        fetch(tmp_path)
    assert own.read_bytes() == b"mine"


@pytest.mark.parametrize("name", HUBS)
def test_a_correct_file_missing_in_the_journal_is_not_downloaded_again(hub, model, tmp_path, name):
    out = fetch(tmp_path, f"{name}:owner/name")
    (out / "download.json").unlink()
    (out / ".checked.jsonl").write_text("")
    served = dict(hub.served)
    is_whole(fetch(tmp_path, f"{name}:owner/name"), model)
    assert hub.served == served


def test_pauses_double_up_to_a_minute():
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    waits = []
    for state.attempt_number in range(1, 9):
        waits.append(downloads.WAIT(state))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_attempts_are_counted_again_after_progress():
    on_disk = iter([0, 0, 5, 5, 5, 7, 0, 0, 0])
    stop = downloads.StopWithoutProgress(3, lambda: next(on_disk))
    assert [stop(None) for _ in range(8)] == [False, False, False, False, False, False, False, True]


class BrokenHub:
    """A hub whose connections break; `sizes` are the bytes on disk after each attempt."""

    retryable = (ConnectionError,)

    def __init__(self, sizes):
        self.sizes, self.attempts = sizes, 0

    def fetch(self, file, folder):
        (folder / "part").write_bytes(b"x" * self.sizes[self.attempts])
        self.attempts += 1
        raise ConnectionError("cut\nmore")

    def list_parts(self, file, folder):
        return [folder / "part"]


@pytest.mark.parametrize(("sizes", "attempts"), [([0] * 9, 5), ([1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3], 10)])
def test_a_download_ends_after_attempts_without_progress(tmp_path, monkeypatch, caplog, sizes, attempts):
    monkeypatch.setattr(downloads, "WAIT", tenacity.wait_none())
    hub, file = BrokenHub(sizes), RemoteFile("a.bin", 9, None)
    with pytest.raises(InputError, match=r"^a\.bin: ConnectionError: cut; gave up after 5 attempts without progress"):
        downloads.download_file(hub, file, tmp_path, downloads.CheckedFiles(tmp_path))
    assert hub.attempts == attempts
    assert caplog.messages == ["a.bin: ConnectionError: cut; retrying in 0 s"] * (attempts - 1)


def test_an_input_error_is_final(tmp_path):
    class ClosedHub(BrokenHub):
        def fetch(self, file, folder):
            self.attempts += 1
            raise InputError("denied")

    hub = ClosedHub([0])
    with pytest.raises(InputError, match=r"^a\.bin: denied$"):
        downloads.download_file(hub, RemoteFile("a.bin", 9, None), tmp_path, downloads.CheckedFiles(tmp_path))
    assert hub.attempts == 1
