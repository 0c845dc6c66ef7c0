"""Working directories that the workflow's tests start from, each built once and shared by all pytest-xdist workers."""

import fcntl
import os
import shutil

import pytest
from running import Directory, copy_project, make_models, make_records


def build_once(tmp_path_factory, name, build):
    """Return the folder that `build(folder)` fills, by the first worker that needs it; the other workers wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, marker = shared / name, shared / f"{name}.built"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            marker.touch()
    return folder


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Records and models before any run.

    Tests copy the directory before they change it or run Snakemake in it.
    """

    def build(folder):
        make_records(folder)
        make_models(folder)

    return Directory(build_once(tmp_path_factory, "fresh", build))


@pytest.fixture(scope="session")
def finished(fresh, tmp_path_factory):
    """The finished run of the whole workflow, with Snakemake's `output`.

    Tests copy the directory before they change it or run Snakemake in it.
    """

    def build(folder):
        output = fresh.copy(folder / "run").run()
        (folder / "output.txt").write_text(output, encoding="utf-8")

    folder = build_once(tmp_path_factory, "finished", build)
    directory = Directory(folder / "run")
    directory.output = (folder / "output.txt").read_text(encoding="utf-8")
    return directory


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, with new time stamps."""
    return finished.copy(tmp_path / "copy")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A copy of the project to edit."""
    return copy_project(tmp_path_factory.mktemp("checkout") / "stillhouse")
