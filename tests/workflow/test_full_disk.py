"""A disk that is full ends a step with a clear message; with space again, the next run goes on from what is stored."""

import errno
import os
import shutil
import subprocess
from contextlib import suppress

import pytest
from killing import count_cached, start, wait_in_run
from running import merge, read_lines
from safetensors.torch import load_file

ANSWERS = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
STUDENT = "output/student_kd/banks/model.safetensors"
EXPORT = "output/export/student_kd/banks/full/model.safetensors"
INDEX = "artifacts/distill_data/teacher_signal/banks/topk_8_t2/index.json"
SIZE = 4 * 2**20

pytestmark = pytest.mark.slow


class Disk:
    """A small disk in memory, mounted at a folder.

    Args:
        folder: the folder, made here; what it contained is hidden.
    """

    def __init__(self, folder):
        self.folder, self.filler = folder, folder / "filler"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=True, capture_output=True)

    def fill(self):
        """Take all space that is free."""
        with suppress(OSError), open(self.filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self):
        self.filler.unlink()


@pytest.fixture
def mount():
    """A function that mounts a `Disk` at a folder; skips the test where mounting is not permitted."""
    disks = []

    def call(folder):
        try:
            disks.append(Disk(folder))
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("mounting a disk needs root")
        return disks[-1]

    yield call
    for disk in disks:
        subprocess.run(["umount", disk.folder], check=True)


def test_generation_on_a_disk_that_fills_stores_what_it_has(finished, tmp_path, mount):
    directory = finished.copy(tmp_path / "run")
    directory.configure(merge(directory.config, {"teacher": {"generation": {"batch_size": 1}}}))
    shutil.rmtree(directory / "artifacts/cache")
    (directory / ANSWERS).unlink()
    disk = mount(directory / "artifacts/cache")
    process = start(directory, ANSWERS)
    wait_in_run(process, lambda: count_cached(directory) >= 3)
    disk.fill()
    assert process.wait(timeout=120) != 0
    log = (directory / "logs/generate_answers/banks.log").read_text()
    assert f"cannot store a teacher answer: {os.strerror(errno.ENOSPC)}" in log
    assert "free space on its disk and rerun the same command to resume" in log
    assert "Traceback" not in log
    kept = count_cached(directory)
    assert 3 <= kept < 33
    assert not (directory / ANSWERS).exists()

    disk.free()
    directory.run(ANSWERS)
    assert read_lines(directory / ANSWERS) == read_lines(finished / ANSWERS)
    assert f"{kept} in the cache" in (directory / "logs/generate_answers/banks.log").read_text()


@pytest.mark.parametrize(
    ("folder", "target", "what"),
    [
        pytest.param("artifacts/distill_data/teacher_signal", INDEX, "the teacher signal", id="signal"),
        pytest.param("artifacts/checkpoints", STUDENT, "checkpoints and student", id="training"),
        pytest.param("output/export", EXPORT, "the variant full", id="export"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_computed(finished, tmp_path, mount, folder, target, what):
    directory = finished.copy(tmp_path / "run")
    if target == INDEX:
        students = {"student_kd": {"signal": "topk", "top_k": 8}}
        directory.configure(merge(directory.config, {"students": students}))
    elif target == EXPORT:
        directory.configure(directory.config | {"export": {"variants": ["full"]}})
    else:
        shutil.rmtree((directory / STUDENT).parent)
    disk = mount(directory / folder)
    disk.fill()
    output = directory.run(target, check=False)
    assert f"of free disk for {what}, found" in output
    assert "make disk lists what is stored" in output
    assert "Traceback" not in output
    assert not (directory / target).exists()

    disk.free()
    directory.run(target)
    assert (directory / target).exists()
    if target == STUDENT:
        one, other = load_file(directory / target), load_file(finished / target)
        assert all(one[name].equal(other[name]) for name in other)
