"""The real trackers: a job that is killed goes on in its run, and every value, setting and card can be read back.

Each is skipped where its package is not installed; `pip install -r requirements-extra.txt` installs all. Jobs are
processes of their own, since the libraries keep state, and a killed job ends without any clean-up.
"""

import json
import os
import struct
import subprocess
import sys

import pytest
from running import SCRIPTS

from distill.common.trackers import TRACKERS, find_missing

JOB = """
import os, sys, time
from distill.common.reporter import Reporter
from distill.common.trackers import TrackerOptions

def main(tracker, first, last, is_killed):
    config = {"method": "forward_kl", "temperature": 2.0, "teachers": ["models/teacher"]}
    options = TrackerOptions([tracker], "holdings")
    with Reporter(options, "train_student", "student_kd/banks", "digest", config) as reporter:
        reporter.start(first)
        for step in range(first + 1, last + 1):
            reporter.log({"train/loss": 10 / step, "train/step": step}, step)
        if is_killed:
            (worker,) = reporter.workers
            while worker.made < worker.expected:
                time.sleep(0.05)
            # Until the tracker's own thread or process has written; wandb does so every 15 s.
            time.sleep(20 if tracker == "wandb" else 3)
            os._exit(9)
        reporter.add_card("# student_kd: banks")

tracker, first, last, is_killed = sys.argv[1:]
main(tracker, int(first), int(last), is_killed == "killed")
"""
CARD = "# student_kd: banks"
TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_run_records("holdings")
print(json.dumps([{**run, "config": SQLiteStorage.get_run_config("holdings", run["name"], run_id=run["id"]),
    "logs": SQLiteStorage.get_logs("holdings", run["name"], run_id=run["id"])} for run in runs], default=str))
"""


def run(code, *arguments, folder, **variables):
    """Run Python code in a folder, and return its exit code and its output."""
    names = ("WANDB_", "MLFLOW_", "TRACKIO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(SCRIPTS)} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def train(tracker, folder, **variables):
    """A job that is killed at step 5, after a checkpoint at step 3, and goes on to step 8; and one that repeats it."""
    for first, last, end, code in ((0, 5, "killed", 9), (3, 8, "ends", 0), (0, 2, "ends", 0)):
        found, _, errors = run(JOB, tracker, first, last, end, folder=folder, **variables)
        assert found == code, errors
        assert "Traceback" not in errors
        assert "report_to" not in errors
    assert not list((folder / "artifacts/trackers/unfinished").iterdir())


def needs(name):
    missing = find_missing([name])
    return pytest.mark.skipif(bool(missing), reason=f"{name} is not installed (requirements-extra.txt)")


@needs("tensorboard")
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard", tmp_path)
    folders = sorted((tmp_path / "artifacts/trackers/tensorboard/student_kd").iterdir(), key=os.path.getmtime)
    assert [folder.name[:6] for folder in folders] == ["banks-", "banks-"]
    first, second = (EventAccumulator(str(folder), purge_orphaned_data=True).Reload() for folder in folders)
    # What the killed job reported after the checkpoint is hidden.
    assert [(event.step, event.value) for event in first.Scalars("train/loss")] == [
        (step, pytest.approx(10 / step)) for step in range(1, 9)
    ]
    assert [event.step for event in second.Scalars("train/loss")] == [1, 2]
    (card,) = first.Tensors("card/text_summary")
    assert card.tensor_proto.string_val[0].decode() == CARD
    text = first.Tensors("configuration/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| method | forward_kl |" in text


@needs("trackio")
def test_trackio(tmp_path):
    train("trackio", tmp_path)
    code, output, errors = run(TRACKIO, folder=tmp_path, TRACKIO_DIR=str(tmp_path / "artifacts/trackers/trackio"))
    assert code == 0, errors
    runs = json.loads(output)
    first, second = sorted(runs, key=lambda one: len(one["logs"]), reverse=True)
    assert first["name"].startswith("student_kd/banks-")
    assert first["name"].endswith(first["config"]["run_id"][:8])
    assert first["config"]["method"] == "forward_kl"
    steps = [line["step"] for line in first["logs"] if "train/loss" in line]
    assert sorted(steps) == sorted([*range(1, 6), *range(4, 9)])
    assert all(line["train/loss"] == pytest.approx(10 / line["step"]) for line in first["logs"] if "train/loss" in line)
    assert [line["step"] for line in second["logs"] if "train/loss" in line] == [1, 2]
    (card,) = [line["card"] for line in first["logs"] if "card" in line]
    assert CARD in json.dumps(card)


@needs("mlflow")
def test_mlflow(tmp_path):
    train("mlflow", tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'artifacts/trackers/mlflow.db'}")
    experiment = client.get_experiment_by_name("holdings")
    first, second = sorted(client.search_runs([experiment.experiment_id]), key=lambda one: one.info.start_time)
    assert first.info.run_name == second.info.run_name == "student_kd/banks"
    assert first.info.status == "FINISHED"
    assert first.data.params == {"method": "forward_kl", "temperature": "2.0", "teachers": '["models/teacher"]'}
    assert first.data.tags["mlflow.note.content"] == CARD
    assert first.data.tags["stillhouse.rule"] == "train_student"
    history = client.get_metric_history(first.info.run_id, "train/loss")
    assert sorted({(one.step, one.value) for one in history}) == [(step, 10 / step) for step in range(1, 9)]
    assert len(client.get_metric_history(second.info.run_id, "train/loss")) == 2


def read_wandb(path):
    """The records of a file `run-ID.wandb`: LevelDB's log format, with a protocol buffer in each record."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
        elif kind == 0:
            return


@needs("wandb")
def test_wandb_offline(tmp_path):
    train("wandb", tmp_path, WANDB_MODE="offline")
    files = sorted((tmp_path / "artifacts/trackers/wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    numbers = [path.stem.removeprefix("run-") for path in files]
    assert len(files) == 3
    assert numbers[0] == numbers[1] != numbers[2]  # `wandb sync` merges what has the same id
    found, notes = [], []
    for path in files[:2]:
        for record in read_wandb(path):
            if record.HasField("run"):
                assert record.run.display_name == "student_kd/banks"
                assert (record.run.project, record.run.job_type) == ("holdings", "train_student")
                notes.append(record.run.notes)
            items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "train/loss" in items:
                found.append((int(items["step"]), float(items["train/loss"])))
    assert found == [(step, pytest.approx(10 / step)) for step in (*range(1, 6), *range(4, 9))]
    assert notes[-1] == CARD


# ---- Servers that cannot be reached ----

AWAY = {
    "wandb": {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40},
    "mlflow": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    "trackio": {"TRACKIO_SERVER_URL": "http://127.0.0.1:9", "TRACKIO_WRITE_TOKEN": "none"},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[needs(name), pytest.mark.slow]) for name in AWAY])
def test_a_server_that_is_away_ends_no_job(name, tmp_path):
    code, _, errors = run(JOB, name, 0, 3, "ends", folder=tmp_path, **AWAY[name])
    assert code == 0, errors
    if name != "trackio":  # which keeps the values on the disk, and sends them with those of the next job
        assert f"report_to: {name} lacks the last" in errors


def test_every_tracker_has_a_real_test():
    assert set(TRACKERS) == {"tensorboard", "trackio", "wandb", "mlflow"}
