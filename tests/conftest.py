"""Settings of all tests: a run of the tests leaves no new file in the repository."""

import gc
import os

import pytest
from running import ROOT, is_generated

# The files that take longest run first, so that both workers end at about the same time: a file stays on one worker.
LONG = (
    "test_scale_benchmark.py",
    "test_kills.py",
    "test_benchmarks.py",
    "test_memory_plan.py",
    "test_vllm_runs.py",
    "test_vllm_engine.py",
    "test_served_teacher.py",
    "test_stopped_training.py",
    "test_cluster_runs.py",
    "test_training.py",
)
NEW_FILES = pytest.StashKey[list[str]]()
FILES_BEFORE = pytest.StashKey[set[str]]()


def list_files():
    """Paths of the repository's files, without environments and the tools' caches."""
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not is_generated(name)]
        found |= {os.path.relpath(os.path.join(folder, name), ROOT) for name in files}
    return found


def is_worker(config):
    return hasattr(config, "workerinput")


def pytest_sessionstart(session):
    if not is_worker(session.config):
        session.config.stash[FILES_BEFORE] = list_files()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish():
    """Leave what is imported out of garbage collections, which every training makes: they took a third of its time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    """Fail the run if it leaves new files in the repository, such as a script's outputs at their default paths."""
    if is_worker(session.config):
        return
    new = sorted(list_files() - session.config.stash[FILES_BEFORE])
    session.config.stash[NEW_FILES] = new
    if new and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    new = config.stash.get(NEW_FILES, [])
    if new:
        terminalreporter.section("new files in the repository", sep="=", red=True)
        terminalreporter.line(f"The tests left {len(new)} new files in the repository; use tmp_path instead:")
        for path in new[:20]:
            terminalreporter.line(f"  {path}")
