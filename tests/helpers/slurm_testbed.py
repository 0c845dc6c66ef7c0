"""A real Slurm of two nodes on this machine, with the project's workflow submitted to it."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from running import CONFIG, ROOT, environment, merge

SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip", "pgrep")
BOX = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc")
# The machine that the testbed is on has no GPU, and with `cpu` no job would ask for one.
SETTINGS = merge(CONFIG, {"device": "auto"}) | {"students": {"student_kd": CONFIG["students"]["student_kd"]}}
# What a test overrides of the profile: jobs end within seconds here, and are asked for soon.
SOON = ("--slurm-init-seconds-before-status-checks", "3")


class Run:
    """Snakemake with the profile slurm, running."""

    def __init__(self, command):
        options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(list(map(str, command)), start_new_session=True, text=True, **options)

    def wait(self, timeout=600):
        """(exit code, output), when it has let go of its output: nsenter may end before Snakemake does."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"after {timeout} s Snakemake had not ended:\n{(error.output or b'').decode()}")
        return self.process.returncode, output

    def interrupt(self):
        """Ctrl-C, as a terminal sends it: to all of its processes."""
        os.killpg(self.process.pid, signal.SIGINT)


class Testbed:
    """A Slurm of a controller and the nodes n1 and n2, in a folder that tests/slurm/up.sh made."""

    __test__ = False  # for pytest, which would take it for a test

    def __init__(self, folder):
        self.folder = folder

    def run(self, *command, check=True, box="ctl", **options):
        """Output of a command on the login node, or on one of the others."""
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
        """Submit a directory's workflow to Slurm: `snakemake --profile slurm …`."""
        command = [self.folder / "in", "snakemake", "--profile", "slurm", *overrides]
        command += ["--configfile", directory.configfile, "--directory", directory.path, *arguments]
        return Run(command)

    def queue(self, fields="%i %T"):
        """What squeue says of the jobs that have not ended, each split into words."""
        return [line.split() for line in self.run("squeue", "--noheader", f"--format={fields}").splitlines()]

    def state(self, job):
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job).strip()

    def restarts(self, job):
        return int(self.run("squeue", "--noheader", "--states=all", "--Format=RestartCnt", "--jobs", job))

    def ended(self):
        """Jobs that have ended, as mappings of what Slurm writes of each: JobId, JobState, NodeList, StartTime, …"""
        path = self.folder / "log/jobs.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines]

    def steps(self, node):
        """("launch" or "done", job) of each of a node's job steps, in their order; a group has a step for each rule."""
        text = (self.folder / f"log/slurmd-{node}.log").read_text()
        found = re.findall(r"launch task StepId=(\d+)\.\d+ |\[(\d+)\.\d+\] done with job", text)
        return [("launch", launched) if launched else ("done", done) for launched, done in found]


def wait_until(is_time, seconds=180, why=""):
    """Wait for something to come about; its first value that is true."""
    end = time.monotonic() + seconds
    while not (value := is_time()):
        assert time.monotonic() < end, f"waited {seconds} s in vain {why}"
        time.sleep(0.2)
    return value


def submitted(output):
    """{Slurm's job: the rule, or `group_NAME`} of a run's output, by the folders of Slurm's logs."""
    jobs = re.findall(r"SLURM jobid (\d+) \(log: \S*/slurm_logs/(?:rule_)?(\w+)/", output)
    # The folder of a group's log names the rules after the group.
    return {job: re.sub(r"^(group_(?:report|\w+?_(?:all|banks|households)))_.*", r"\1", name) for job, name in jobs}


def find_obstacle():
    """Why the testbed cannot be brought up here; nothing where it can."""
    if os.geteuid() != 0:
        return "the two-node Slurm needs root, for network and process namespaces"
    missing = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
    if missing:
        return f"the two-node Slurm needs {', '.join(missing)}: see tests/slurm/up.sh"
    boxes = subprocess.run(["unshare", *BOX, "true"], env=os.environ | {"PATH": SBIN}, capture_output=True, text=True)
    return f"no namespaces can be made here: {boxes.stderr.strip()}" if boxes.returncode else None
