"""Run Snakemake in a session of its own, and kill it together with its jobs."""

import os
import signal
import subprocess
import time
from functools import partial

from running import ONE_THREAD, ROOT, environment


def start(directory, target):
    """Start Snakemake without waiting for its end."""
    command = ["snakemake", "--profile", "local", *ONE_THREAD]
    command += ["--configfile", directory.configfile, "--directory", directory.path, target]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        # Background jobs of a shell inherit an ignored SIGINT, which would make Ctrl-C ineffective.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def signal_session(process, signal_number):
    """Signal Snakemake and its jobs, and wait for Snakemake's end."""
    os.killpg(process.pid, signal_number)
    process.wait(timeout=60)


def wait_in_run(process, is_time, seconds=300):
    """Wait until `is_time()` is true; fail if the run ends before that."""
    end = time.monotonic() + seconds
    while not is_time():
        assert process.poll() is None, "the run ended before the awaited instant"
        assert time.monotonic() < end, f"the awaited instant did not come within {seconds} s"
        time.sleep(0.01)


def kill_when(process, is_time, signal_number=signal.SIGKILL):
    """Signal the session as soon as `is_time()` is true; fail if the run ends before that."""
    wait_in_run(process, is_time)
    signal_session(process, signal_number)


def kill_later(process, is_time, seconds):
    """Kill the session some seconds after `is_time()` becomes true.

    Returns:
        Whether the session was killed; False if the run ended before.
    """
    reached = None
    while process.poll() is None:
        reached = reached or (time.monotonic() if is_time() else None)
        if reached and time.monotonic() - reached >= seconds:
            signal_session(process, signal.SIGKILL)
            return True
        time.sleep(0.01)
    return False


def count_cached(directory):
    """Number of teacher answers in a directory's cache."""
    return sum(path.read_bytes().count(b"\n") for path in directory.path.glob("artifacts/cache/teacher/*/*.jsonl"))
