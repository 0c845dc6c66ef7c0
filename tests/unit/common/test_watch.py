"""The command that opens a tracker's dashboard."""

import os

import pytest

import watch
from distill.common.errors import InputError
from distill.common.trackers import DASHBOARDS, FOLDER, TRACKERS


@pytest.fixture
def opened(monkeypatch):
    """The commands that would replace the process, and TRACKIO_DIR with each; every tracker counts as installed."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda path, argv: commands.append((str(path), argv, dict(os.environ))))
    monkeypatch.setattr(watch, "check_installed", lambda names: None)
    for name in ("TRACKIO_DIR", "GRADIO_SERVER_PORT"):
        monkeypatch.setenv(name, "")
    return commands


def make_runs(directory, *names):
    for name in names:
        (directory / FOLDER / DASHBOARDS[name].place).mkdir(parents=True)


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (["tensorboard"], [], "tensorboard"),
        (["mlflow", "trackio"], [], "trackio"),
        (["mlflow", "tensorboard"], ["--tracker", "mlflow"], "mlflow"),
    ],
)
def test_the_dashboard_of_a_tracker_with_runs_is_opened(tmp_path, opened, names, asked, expected):
    make_runs(tmp_path, *names)
    watch.main(["--directory", str(tmp_path), "--port", "7001", *asked])
    ((path, argv, variables),) = opened
    assert os.path.basename(path) == argv[0] == expected
    place = str(tmp_path / FOLDER / DASHBOARDS[expected].place)
    assert any(place in text for text in (*argv, variables["TRACKIO_DIR"]))
    assert "7001" in (*argv, variables["GRADIO_SERVER_PORT"])


@pytest.mark.parametrize(("names", "asked"), [([], []), (["trackio"], ["--tracker", "mlflow"])])
def test_without_runs_the_error_says_what_to_configure(tmp_path, opened, names, asked):
    make_runs(tmp_path, *names)
    with pytest.raises(InputError, match=r"expected runs of .*set report_to in the configuration"):
        watch.main(["--directory", str(tmp_path), *asked])
    assert opened == []


def test_every_local_tracker_has_a_dashboard():
    assert set(DASHBOARDS) == set(TRACKERS) - {"wandb"}  # which has a server of its own
