"""The shell around a rule's command in a Slurm job, with stand-ins for squeue and scontrol."""

import os
import signal
import subprocess
import time
from datetime import datetime, timedelta

import pytest
from running import SCRIPTS

# A command that keeps what it has done when SIGTERM comes, and ends with the code that is asked for.
COMMAND = """\
set -euo pipefail
source {script}
python3 -c '
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("kept"), sys.exit({code})))
print(os.getpid(), flush=True)
time.sleep(60)
'
"""


@pytest.fixture
def run(tmp_path):
    """Run the command as Slurm does, SIGTERM to its processes; (exit code, output, what scontrol was asked)."""
    asked = tmp_path / "asked"

    def run(code, state="RUNNING", restarts=None, minutes=60, shell=True):
        asked.unlink(missing_ok=True)
        end = datetime.now() + timedelta(minutes=minutes)
        for name, text in (("squeue", f"echo {state} {end:%Y-%m-%dT%H:%M:%S}"), ("scontrol", f'echo "$@" > {asked}')):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        variables = os.environ | {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        variables |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts is not None else {}
        process = subprocess.Popen(
            ["bash", "-c", COMMAND.format(script=SCRIPTS / "requeue.sh", code=code)],
            env=variables,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        command = int(process.stdout.readline())
        time.sleep(0.1)
        if shell:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            os.kill(command, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output, asked.read_text() if asked.exists() else ""

    return run


def test_a_command_that_sigterm_ends_is_waited_for_and_queued_again(run):
    code, output, asked = run(143)
    assert code == 143
    assert output.startswith("kept\n")
    assert asked == "requeue 7\n"


def test_one_that_ends_well_in_spite_of_it_is_not(run):
    assert run(0) == (0, "kept\n", "")


def test_a_job_that_was_cancelled_stays_so(run):
    assert run(143, state="COMPLETING") == (143, "kept\n", "")


def test_a_job_does_not_come_back_for_ever(run):
    assert run(143, restarts=29)[2] == "requeue 7\n"
    code, output, asked = run(143, restarts=30)
    assert (code, asked) == (143, "")
    assert "it needs a longer runtime" in output


def test_a_failure_far_from_the_time_limit_is_none_of_slurms(run):
    assert run(1, shell=False) == (1, "kept\n", "")


def test_where_the_signal_does_not_reach_the_shell_the_clock_tells(run):
    assert run(1, shell=False, minutes=4)[2] == "requeue 7\n"
