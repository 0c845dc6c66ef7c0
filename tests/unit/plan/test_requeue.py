"""The shell around a rule's command in a Slurm job, with fake squeue and scontrol."""

import os
import signal
import subprocess
import time
from datetime import datetime, timedelta

import pytest
from running import SCRIPTS

# A command that saves its progress on a signal, and exits with the given code.
COMMAND = """\
set -euo pipefail
source {script}
python3 -c '
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: (time.sleep(0.3), print("kept"), sys.exit({code})))
print(os.getpid(), flush=True)
time.sleep(60)
'
"""


class Job:
    """A command in a job that, according to the fake squeue, Slurm started a second ago."""

    def __init__(self, folder, code, state="RUNNING", restarts=0, minutes=60, squeue=None, **variables):
        self.asked = folder / "asked"
        self.asked.unlink(missing_ok=True)
        begin = datetime.now() - timedelta(seconds=1)
        times = [f"{when:%Y-%m-%dT%H:%M:%S}" for when in (begin, begin + timedelta(minutes=minutes))]
        squeue = squeue or f"echo {state} {' '.join(times)} {restarts}"
        for name, text in (("squeue", squeue), ("scontrol", f'echo "$@" >> {self.asked}')):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        self.process = subprocess.Popen(
            ["bash", "-c", COMMAND.format(script=SCRIPTS / "requeue.sh", code=code)],
            env=os.environ | {"SLURM_JOB_ID": "7", "PATH": f"{folder}:{os.environ['PATH']}"} | variables,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def started(self):
        """Wait until the command runs, and return its process id."""
        number = int(self.process.stdout.readline())
        time.sleep(0.1)
        return number

    def end(self):
        """Return (exit code, output, arguments of the scontrol calls)."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output, self.asked.read_text() if self.asked.exists() else ""


@pytest.fixture
def start(tmp_path):
    def start(*arguments, **options):
        return Job(tmp_path, *arguments, **options)

    return start


@pytest.fixture
def tell(start):
    """Run the command and signal all processes, as Slurm does."""

    def tell(*arguments, number=signal.SIGUSR1, **options):
        job = start(*arguments, **options)
        job.started()
        os.killpg(job.process.pid, number)
        return job.end()

    return tell


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_command_that_a_signal_ends_is_waited_for_and_queued_again(tell, number):
    code, output, asked = tell(143, number=number)
    assert code == 143
    assert output.startswith("kept\n")
    assert asked == "requeue Incomplete 7\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_shell_may_have_its_signal_after_the_command_has_ended(start, number):
    job = start(128 + number)
    os.kill(job.started(), number)
    time.sleep(0.8)  # the command takes 0.3 s to end
    os.kill(job.process.pid, number)
    code, output, asked = job.end()
    assert (code, asked) == (128 + number, "requeue Incomplete 7\n")
    assert "job 7 is requeued" in output


def test_one_that_ends_well_in_spite_of_it_is_not(tell):
    assert tell(0) == (0, "kept\n", "")


def test_a_job_that_was_cancelled_stays_so(tell):
    assert tell(143, state="COMPLETING") == (143, "kept\n", "")


def test_a_job_that_slurm_is_still_signalling_is_requeued(tell, tmp_path):
    """For a moment, its state is SIGNALING and not RUNNING."""
    running = "RUNNING 2026-11-26T10:00:00 2126-11-26T10:00:00 0"
    squeue = f"n=$(cat {tmp_path}/n 2>/dev/null); echo $((n + 1)) > {tmp_path}/n; line='{running}'"
    squeue += "; case $n in 1|2) line=SIGNALING${line#RUNNING};; esac; echo $line"
    code, output, asked = tell(143, number=signal.SIGTERM, squeue=squeue)
    assert (code, asked) == (143, "requeue Incomplete 7\n")
    assert (tmp_path / "n").read_text() == "4\n"


def test_a_job_does_not_come_back_for_ever(tell):
    assert tell(143, restarts=29)[2] == "requeue Incomplete 7\n"
    code, output, asked = tell(138, restarts=30)
    assert (code, asked) == (138, "")
    assert "it needs a longer runtime" in output


def test_a_failure_is_none_of_slurms(start, tell):
    """Not even after a signal: a checkpoint that does not fit the disk would fail every time."""
    job = start(1, minutes=5)
    os.kill(job.started(), signal.SIGTERM)
    assert job.end() == (1, "kept\n", "")
    assert tell(1) == (1, "kept\n", "")


def test_the_command_is_told_before_the_time_is_up(start):
    """After half of its time, if that is less than five minutes."""
    code, output, asked = start(143, minutes=0.1).end()
    assert code == 143
    assert "kept" in output
    assert asked == "requeue Incomplete 7\n"


def test_it_is_told_in_time_though_slurm_does_not_answer_again(start, tmp_path):
    """And the job is requeued once Slurm responds."""
    begin = datetime.now()
    line = f"echo RUNNING {begin:%Y-%m-%dT%H:%M:%S} {begin + timedelta(seconds=6):%Y-%m-%dT%H:%M:%S} 0"
    silent = (
        f"[ $(date +%s) -lt {int(begin.timestamp()) + 1} -o $(date +%s) -gt {int(begin.timestamp()) + 8} ] || exit 1"
    )
    code, output, asked = start(143, squeue=f"{silent}; {line}").end()
    assert code == 143
    assert "kept" in output
    assert asked == "requeue Incomplete 7\n"


def test_what_comes_before_the_command_is_heeded(start, tmp_path):
    line = "echo RUNNING 2026-11-26T10:00:00 2126-11-26T10:00:00 0"
    job = start(0, squeue=f"touch {tmp_path}/asked_squeue; sleep 1; {line}")
    while not (tmp_path / "asked_squeue").exists():
        time.sleep(0.05)
    os.kill(job.process.pid, signal.SIGUSR1)
    code, output, asked = job.end()
    assert (code, asked) == (143, "requeue Incomplete 7\n")
    assert output.startswith("stopped near")


def test_a_command_for_which_there_is_no_time_is_not_begun(start):
    """An earlier job of the group has used it up."""
    code, output, asked = start(0, minutes=0).end()
    assert (code, asked) == (143, "requeue Incomplete 7\n")
    assert "is requeued" in output
    assert "kept" not in output


@pytest.mark.parametrize("squeue", ["exit 0", "echo RUNNING 2026-11-26T10:00:00 N/A 0"])
def test_without_a_limit_or_an_answer_nothing_is_watched(start, squeue):
    job = start(1, squeue=squeue)
    os.kill(job.started(), signal.SIGTERM)
    assert job.end() == (1, "kept\n", "")


def test_one_job_of_an_array_goes_back_alone(tell):
    """Its plain job id would requeue the whole array."""
    assert tell(143, SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="2")[2] == "requeue Incomplete 6_2\n"


def test_nothing_is_left_behind(start):
    """Not even the sleep until the time is up."""
    job = start(1)
    os.kill(job.started(), signal.SIGTERM)
    job.end()
    time.sleep(0.5)
    left = subprocess.run(["ps", "-o", "stat=,args=", "--sid", str(job.process.pid)], capture_output=True, text=True)
    # In a container, ended processes may remain as zombies (Z).
    assert [line for line in left.stdout.splitlines() if not line.startswith("Z")] == []
