"""How many threads a job has, in control groups with a CPU quota as those of containers, and how they wait."""

import os

import pytest

from distill.common import control_groups, threads
from distill.common.errors import run_script
from distill.common.threads import find_quota, set_threads

UNIFIED = "0::{path}\n"
SEPARATE = "9:name=systemd:/\n4:memory:/\n2:cpu,cpuacct:{path}\n0::/\n"


@pytest.fixture
def write_groups(tmp_path, monkeypatch):
    """Put this process in the group `path`, with the files that `quotas` gives by group; return their folder."""

    def write(lines, path, quotas):
        (tmp_path / "own").write_text(lines.format(path=path))
        for group, files in quotas.items():
            folder = tmp_path / "mounted" / group
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (folder / name).write_text(f"{content}\n")
        return tmp_path / "mounted"

    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(control_groups, "MOUNTED", tmp_path / "mounted")
    return write


@pytest.mark.parametrize(
    ("lines", "path", "quotas", "expected"),
    [
        pytest.param(UNIFIED, "/", {"": {"cpu.max": "200000 100000"}}, 2, id="a container of its own"),
        pytest.param(UNIFIED, "/", {"": {"cpu.max": "150000 100000"}}, 2, id="a fraction is rounded up"),
        pytest.param(UNIFIED, "/", {"": {"cpu.max": "10000 100000"}}, 1, id="at least one"),
        pytest.param(
            UNIFIED, "/a/b", {"a": {"cpu.max": "100000 50000"}, "a/b": {"cpu.max": "max 100000"}}, 2, id="above"
        ),
        pytest.param(UNIFIED, "/a", {"a": {"cpu.max": "max 100000"}}, None, id="no limit"),
        pytest.param(UNIFIED, "/a", {}, None, id="no files"),
        pytest.param(
            SEPARATE,
            "/a",
            {"cpu,cpuacct/a": {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}},
            3,
            id="version 1",
        ),
        pytest.param(
            SEPARATE,
            "/docker/1f",  # The path outside of the container, which does not exist in it.
            {"cpu,cpuacct": {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}},
            1,
            id="version 1 in a container",
        ),
        pytest.param(
            SEPARATE,
            "/",
            {"cpu,cpuacct": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}},
            None,
            id="version 1, no limit",
        ),
    ],
)
def test_the_quota_is_the_lowest_one_of_the_groups(write_groups, lines, path, quotas, expected):
    write_groups(lines, path, quotas)
    assert find_quota() == expected


def test_a_system_without_control_groups_has_no_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "missing")
    assert find_quota() is None


def test_a_group_whose_files_cannot_be_read_sets_no_limit(write_groups):
    groups = write_groups(UNIFIED, "/a", {"": {"cpu.max": "200000 100000"}})
    (groups / "a/cpu.max").mkdir(parents=True)  # an OSError for root, too, who may read every file
    assert find_quota() == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [("8", "2"), ("1", "1"), ("4,2", "4,2"), (None, "2" if len(os.sched_getaffinity(0)) > 2 else None)],
)
def test_threads_are_at_most_the_quota(monkeypatch, before, after):
    monkeypatch.setattr(threads, "find_quota", lambda: 2)
    for name in threads.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    set_threads()
    assert os.environ.get("OMP_NUM_THREADS") == after


@pytest.mark.parametrize("name", threads.WAITING)
def test_threads_sleep_early_unless_the_user_decides(monkeypatch, name):
    for variable in threads.WAITING:
        monkeypatch.delenv(variable, raising=False)
    run_script(lambda: None)
    assert os.environ.pop("GOMP_SPINCOUNT") == "1000"
    monkeypatch.setenv(name, "7")
    run_script(lambda: None)
    assert {variable: os.environ[variable] for variable in threads.WAITING if variable in os.environ} == {name: "7"}
