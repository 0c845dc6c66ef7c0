"""Runs a command whose processes all end with the job that started it, however the job ends.

    python supervisor.py COMMAND ...

The job holds the write end of a pipe, which is this process's standard input. The pipe closes when the job ends, even
by SIGKILL; then the command gets SIGTERM, and what is left of its processes after GRACE_SECONDS gets SIGKILL. Processes
whose parent has died become children of this one (PR_SET_CHILD_SUBREAPER), so that none is missed. The exit code is
the command's, or 128 + N if signal N ended it.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

GRACE_SECONDS = 20.0
LOOK_SECONDS = 0.2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>


def set_process_option(option: int, value: int) -> None:
    """Call prctl(2).

    Raises:
        OSError: the kernel refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a command under a supervisor, in a session of its own, so that Ctrl-C reaches the job alone.

    Args:
        command: program and arguments.
        options: of `subprocess.Popen`, such as `env` and `stdout`.

    Returns:
        The supervisor; closing its `stdin` ends the command.
    """
    return subprocess.Popen(
        [sys.executable, __file__, *command], stdin=subprocess.PIPE, start_new_session=True, **options
    )


def run(command: Sequence[str]) -> int:
    """Run a command until it ends or the job does, end all of its processes, and return its exit code."""
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.append(number))
    # If this process is killed, nobody is left to end the command.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: set_process_option(PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    while child.poll() is None and not signals:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], LOOK_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1):  # the job has closed its end
            break
    if child.poll() is None:
        child.terminate()
    end_processes(child)
    code = child.wait()
    return code if code >= 0 else 128 - code


def end_processes(child: "subprocess.Popen[bytes]") -> None:
    """Wait until all processes of a command have ended; after GRACE_SECONDS, or when it has ended itself, kill them."""
    deadline = time.monotonic() + GRACE_SECONDS
    while processes := [one for one in psutil.Process().children(recursive=True) if is_running(one)]:
        if child.poll() is not None or time.monotonic() > deadline:
            for process in processes:
                kill(process)
        psutil.wait_procs(processes, timeout=LOOK_SECONDS)


def is_running(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill(process: psutil.Process) -> None:
    """Kill a process, unless it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
