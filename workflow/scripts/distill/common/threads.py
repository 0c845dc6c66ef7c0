"""torch's threads on a CPU: how many there are, and how they wait. OpenMP reads both when torch is imported.

Imports no torch.
"""

import math
import os
from pathlib import Path

from distill.common.control_groups import list_groups

NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Turns of the loop in which a thread of GNU OpenMP waits before it sleeps; by default it waits for milliseconds. Where
# other processes need the processors, such a loop takes the time of the thread that it waits for, and jobs take several
# times as long. See benchmarks/waiting.py.
SPINS = "1000"


def set_threads() -> None:
    """Let torch start no more threads than this process may use, and let those that wait sleep early.

    Snakemake sets the number of a job's threads. It knows the processors of this process, and so do Slurm's jobs, but
    not the quota of a container (`docker run --cpus`). How threads wait is left alone if the environment says it. Other
    implementations of OpenMP than GNU's, such as Intel's, sleep early enough and ignore the setting.
    """
    quota = find_quota()
    if quota is not None:
        for name in NUMBERS:
            number = os.environ.get(name, "") or str(len(os.sched_getaffinity(0)))
            if number.isdecimal() and int(number) > quota:
                os.environ[name] = str(quota)
    if not any(name in os.environ for name in WAITING):
        os.environ[WAITING[0]] = SPINS


def find_quota() -> int | None:
    """Return how many processors the control groups of this process may use, rounded up; None if there is no limit."""
    limits = [limit for group, version in list_groups("cpu") if (limit := read_quota(group, version)) is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def read_quota(group: Path, version: int) -> float | None:
    """Return how many processors one control group may use; None if it has no limit."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return None
    return int(quota) / int(period) if quota not in ("max", "-1") else None
