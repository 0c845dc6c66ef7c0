"""A real Slurm of two nodes on this machine."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from running import environment

HERE = Path(__file__).parent
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "pgrep")


class Cluster:
    """The testbed: commands on its controller, its nodes' states, what its jobs ended with."""

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
def cluster(tmp_path_factory):
    if missing := [
        program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    ]:
        pytest.skip(f"Slurm's testbed needs {', '.join(missing)} (see tests/slurm/up.sh)")
    if os.getuid() != 0:
        pytest.skip("Slurm's testbed needs root")
    folder = tmp_path_factory.mktemp("cluster") / "run"
    for path in folder.parents:
        if path.owner() == "root" and not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o111)  # munge insists
    try:
        subprocess.run([HERE / "up.sh", folder], check=True, timeout=120)
        yield Cluster(folder)
    finally:
        subprocess.run([HERE / "down.sh", folder], check=True, timeout=60)
