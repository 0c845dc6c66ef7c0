"""What a running job tells `make status`: a small JSON file in the folder of the run, which is removed with the job.

A job of the workflow is known by its log, to which its rule redirects standard error. Scripts that are run by hand,
with standard error elsewhere, write nothing. The file is no output of the job and never makes it fail: on a full disk
or in a folder that cannot be written, the job is merely not shown.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

FOLDER = Path(".snakemake/stillhouse/progress")  # in the working directory
LOGS = Path("logs")  # in the working directory; every rule's log is below it
HEARTBEAT_SECONDS = 15.0
SECONDS_BETWEEN_WRITES = 2.0
LOG_VARIABLE = "STILLHOUSE_LOG"  # the log, for processes whose standard error is not the log itself, such as srun's
RANK_VARIABLES = ("RANK", "SLURM_PROCID")  # of torchrun and srun

_current: "ProgressFile | None" = None


def find_log() -> Path | None:
    """Return the log of the job that this process belongs to, relative to the working directory.

    None if the process is no job of a run in this directory, or not the first of several processes.
    """
    if not Path(FOLDER.parts[0]).is_dir():  # Snakemake has not run here
        return None
    if any(os.environ.get(name, "0") != "0" for name in RANK_VARIABLES):
        return None
    with suppress(OSError, ValueError):
        log = Path(os.environ.get(LOG_VARIABLE) or os.readlink("/proc/self/fd/2"))
        log = log.resolve().relative_to(Path.cwd().resolve())
        return log if log.parts[:1] == LOGS.parts and log.suffix == ".log" else None
    return None


def read_process(pid: int | str) -> tuple[str, int] | None:
    """Return the state of a process (a letter, see proc(5)) and its start in clock ticks since boot; None without it.

    Args:
        pid: its number, or `self`.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def identify_machine() -> dict[str, str]:
    """Return what tells whether process ids have the same meaning: the kernel's boot and the namespace of the ids."""
    found = {"host": os.uname().nodename}
    with suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["namespace"] = os.readlink("/proc/self/ns/pid")
    return found


def name_file(log: Path) -> str:
    """Return the name of a job's file, one for each log, so that the next start of a killed job replaces its file."""
    return f"{sha256(str(log).encode()).hexdigest()[:20]}.json"


class ProgressFile:
    """The file of this process's job.

    A thread updates its time every HEARTBEAT_SECONDS, also while the job loads a model or is in a long step. A job that
    is stopped or killed does not.

    Args:
        log: the job's log, relative to the working directory.
    """

    def __init__(self, log: Path):
        self.path = FOLDER.absolute() / name_file(log)
        self.aside = self.path.with_suffix(".tmp")
        self.pid = os.getpid()
        self.facts: dict[str, Any] = {"log": str(log), "pid": self.pid, "started": time.time(), **identify_machine()}
        if process := read_process("self"):
            self.facts["start"] = process[1]
        self.written = -SECONDS_BETWEEN_WRITES
        self.is_closed = threading.Event()

    def open(self) -> None:
        """Write the file without figures, and start the heartbeat."""
        self.write({})
        with suppress(RuntimeError):  # no further thread can be started
            threading.Thread(target=self.beat, name="heartbeat", daemon=True).start()

    def is_due(self) -> bool:
        """Whether the last write is old enough for another one, and this is the process of the job, not a fork."""
        return time.monotonic() - self.written >= SECONDS_BETWEEN_WRITES and os.getpid() == self.pid

    def write(self, figures: dict[str, Any]) -> None:
        """Write the figures, see `Progress.get_figures`; the file appears whole or stays as it was."""
        self.written = time.monotonic()
        content = json.dumps(self.facts | figures | {"time": time.time()})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.aside.write_text(content, encoding="utf-8")
            os.replace(self.aside, self.path)
        except OSError:  # the job goes on without
            with suppress(OSError):
                self.aside.unlink(missing_ok=True)

    def beat(self) -> None:
        """Update the time of the file until it is closed."""
        while not self.is_closed.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(self.path)

    def close(self) -> None:
        """Remove the file, unless another process of the job has replaced it."""
        if os.getpid() != self.pid:
            return
        self.is_closed.set()
        with suppress(OSError, ValueError):
            if json.loads(self.path.read_text(encoding="utf-8"))["pid"] == self.pid:
                self.path.unlink()


@contextmanager
def announce_job() -> Iterator[None]:
    """Let `make status` know of this job while the block runs; do nothing in a process that is no job."""
    global _current
    log = find_log()
    if log is None:
        yield
        return
    _current = file = ProgressFile(log)
    file.open()
    try:
        yield
    finally:
        _current = None
        file.close()


def get_progress_file() -> ProgressFile | None:
    """Return the file of this process's job, if it is one."""
    return _current
