"""A real Slurm with two nodes on this machine, and the project's workflow submitted to it."""

import os
import re
import shutil
import signal
import subprocess
import time
from datetime import datetime

import pytest
from running import CONFIG, ROOT, environment, merge

SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip", "pgrep")
BOX = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc")
# With `device: cpu` no job would request a GPU. The nodes have one each in name only, so jobs run on the CPU.
SETTINGS = merge(CONFIG, {"device": "auto"}) | {"students": {"student_kd": CONFIG["students"]["student_kd"]}}
# Overrides of the profile: jobs end within seconds here, so their status is checked early.
SOON = ("--slurm-init-seconds-before-status-checks", "3")


class Run:
    """Snakemake with the profile slurm, running."""

    def __init__(self, command):
        options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(list(map(str, command)), start_new_session=True, text=True, **options)

    def wait(self, timeout=600):
        """Wait for the end and return (exit code, output).

        The end of the output counts, not that of the process: nsenter may end before Snakemake.
        """
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"Snakemake did not end within {timeout} s:\n{(error.output or b'').decode()}")
        return self.process.returncode, output

    def interrupt(self):
        """Send SIGINT to all of its processes, as Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)


class Testbed:
    """A Slurm with a controller and the nodes n1 and n2, in a folder that tests/slurm/up.sh made."""

    __test__ = False  # not a test class, in spite of its name

    def __init__(self, folder):
        self.folder = folder

    def run(self, *command, check=True, box="ctl", **options):
        """Run a command on the login node, or on the node `box`, and return its output."""
        done = subprocess.run(
            [self.folder / "in", *map(str, command)],
            cwd=ROOT,
            env=environment() | {"BOX": box},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            **options,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def start(self, directory, *arguments, overrides=SOON):
        """Start `snakemake --profile slurm …` on a directory, without waiting for its end."""
        command = [self.folder / "in", "snakemake", "--profile", "slurm", *overrides]
        command += ["--configfile", directory.configfile, "--directory", directory.path, *arguments]
        return Run(command)

    def queue(self, fields="%i %T"):
        """Return the fields that squeue prints for each job that has not ended."""
        return [line.split() for line in self.run("squeue", "--noheader", f"--format={fields}").splitlines()]

    def state(self, job):
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job).strip()

    def restarts(self, job):
        return int(self.run("squeue", "--noheader", "--states=all", "--Format=RestartCnt", "--jobs", job))

    def ended(self):
        """Return the ended jobs as mappings of the fields in Slurm's log: JobId, JobState, NodeList, StartTime, …"""
        path = self.folder / "log/jobs.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines]

    def steps(self, node):
        """Return (job, launch, end) of a node's job steps in the order of their launches, both as times of day.

        A group has one step for each rule.
        """
        text = (self.folder / f"log/slurmd-{node}.log").read_text()
        launched = re.findall(r"^\[(\S+)\] .*launch task StepId=(\d+)\.(\d+) ", text, flags=re.MULTILINE)
        ended = re.findall(r"^\[(\S+)\] \[(\d+)\.(\d+)\] done with job", text, flags=re.MULTILINE)
        ends = {(job, step): datetime.fromisoformat(time) for time, job, step in ended}
        return [(job, datetime.fromisoformat(time), ends[job, step]) for time, job, step in launched]


def wait_until(is_time, seconds=600, why="", describe=lambda: ""):
    """Wait until `is_time()` is true and return its value; `why` completes "waited 600 s in vain …".

    The limit is many times what an idle machine needs. `describe` returns further text for the message.
    """
    end = time.monotonic() + seconds
    while not (value := is_time()):
        if time.monotonic() >= end:
            pytest.fail(f"waited {seconds} s in vain {why}\n{describe()}")
        time.sleep(0.2)
    return value


def submitted(output):
    """Map the Slurm jobs in a run's output to their rule or `group_NAME`, which the paths of their logs contain."""
    jobs = re.findall(r"SLURM jobid (\d+) \(log: \S*/slurm_logs/(?:rule_)?([\w.]+)/", output)
    # The folder of a group's log is named after the group and its rules; from the sixth on, "..." stands for them.
    return {job: re.sub(r"^(group_(?:report|\w+?_(?:all|banks|households)))_.*", r"\1", name) for job, name in jobs}


def find_obstacle():
    """Return why the testbed cannot run on this machine, or None if it can."""
    if os.geteuid() != 0:
        return "the two-node Slurm needs root, for network and process namespaces"
    missing = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
    if missing:
        return f"the two-node Slurm needs {', '.join(missing)}: see tests/slurm/up.sh"
    boxes = subprocess.run(["unshare", *BOX, "true"], env=os.environ | {"PATH": SBIN}, capture_output=True, text=True)
    return f"this machine does not allow namespaces: {boxes.stderr.strip()}" if boxes.returncode else None
