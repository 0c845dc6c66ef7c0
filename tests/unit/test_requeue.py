"""The shell around a rule's command in a Slurm job, with stand-ins for squeue and scontrol."""

import os
import signal
import subprocess
import time

import pytest
from running import SCRIPTS

# A command that keeps what it has done when SIGTERM comes, and ends with the code that is asked for.
COMMAND = """\
set -euo pipefail
source {script}
python3 -c '
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("kept"), sys.exit({code})))
print("ready", flush=True)
time.sleep(60)
'
"""


@pytest.fixture
def run(tmp_path):
    """Run the command as Slurm does, SIGTERM to all its processes; (exit code, output, what scontrol was asked)."""
    asked = tmp_path / "asked"

    def run(code, state="RUNNING", restarts=None):
        for name, text in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {asked}')):
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
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
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
    assert (code, asked) == (143, "requeue 7\n")  # of the call before
    assert "it needs a longer runtime" in output
