"""One Slurm of two nodes for all tests, and working directories to submit to it."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from running import Directory, environment, make_models, make_records
from slurm_testbed import SBIN, SETTINGS, Testbed, find_obstacle

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def testbed():
    """A Slurm of its own, ended with the tests."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    above = Path(tempfile.mkdtemp(prefix="stillhouse-slurm-"))
    above.chmod(0o755)  # munge wants it open to everybody
    bed = Testbed(above / "testbed")
    try:
        subprocess.run([HERE / "up.sh", bed.folder], env=os.environ | {"PATH": SBIN}, check=True)
        yield bed
    finally:
        subprocess.run([HERE / "down.sh", bed.folder], check=True)
        shutil.rmtree(above)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Records and tiny models, nothing run."""
    path = tmp_path_factory.mktemp("prepared")
    make_records(path)
    make_models(path)
    return Directory(path, SETTINGS)


class Cluster:
    """The testbed for commands of its own: its nodes' states, what its jobs ended with."""

    def __init__(self, folder):
        self.folder = folder

    def command(self, *words):
        return [str(self.folder / "in"), *map(str, words)]

    def run(self, *words, **options):
        """Standard output of a command."""
        done = subprocess.run(
            self.command(*words), env=environment(), capture_output=True, text=True, timeout=60, **options
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, is_so, seconds=240):
        """The first value that is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := is_so():
                return value
            time.sleep(0.1)
        raise TimeoutError(self.run("squeue"))

    def state(self, job):
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job)

    def ended(self, job):
        """What Slurm wrote down when a job ended, the last time."""
        lines = (self.folder / "log/jobs.txt").read_text().splitlines()
        return [line for line in lines if line.startswith(f"JobId={job} ")][-1]


@pytest.fixture(scope="session")
def cluster(testbed):
    return Cluster(testbed.folder)
