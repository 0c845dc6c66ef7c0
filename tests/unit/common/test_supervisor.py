"""A supervised command ends with the job that started it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distill.common import supervisor

# A process with a child that ignores SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
print(child.pid, flush=True)
time.sleep({seconds})
"""


def start(code, *, stdout=subprocess.PIPE, **options):
    return supervisor.start([sys.executable, "-c", code], stdout=stdout, **options)


def has_ended(pid, seconds=30):
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(3)", 3)])
def test_the_exit_code_is_the_commands(code, expected):
    process = start(code)
    assert process.wait(timeout=30) == expected


def test_a_signal_that_ended_the_command_is_named_as_shells_do():
    assert start("import os; os.kill(os.getpid(), 9)").wait(timeout=30) == 128 + signal.SIGKILL


def test_what_a_command_leaves_behind_is_killed_when_it_ends():
    process = start(STUBBORN.format(seconds=0))
    child = int(process.stdout.readline())
    assert process.wait(timeout=30) == 0
    assert has_ended(child)


@pytest.mark.parametrize("how", ["closed", signal.SIGTERM, signal.SIGINT])
def test_closing_the_pipe_or_a_signal_ends_everything(how):
    source = Path(supervisor.__file__).read_text().replace("GRACE_SECONDS = 20.0", "GRACE_SECONDS = 1.0")
    command = [sys.executable, "-c", source, sys.executable, "-c", STUBBORN.format(seconds=600)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    if how == "closed":
        process.stdin.close()
    else:
        process.send_signal(how)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert has_ended(child)


def test_the_command_ends_if_its_supervisor_is_killed():
    process = start("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    command = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert has_ended(command)


def test_everything_ends_if_the_job_is_killed():
    code = f"""
import sys, time
sys.path.insert(0, {str(supervisor.__file__).removesuffix("/distill/common/supervisor.py")!r})
from distill.common import supervisor
supervisor.start([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
time.sleep(600)
"""
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    command = int(job.stdout.readline())
    job.kill()
    job.wait()
    assert has_ended(command)
