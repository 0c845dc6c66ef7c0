"""The machine's memory that this process may use, with the limits of its control groups (containers, Slurm jobs)."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from distill.common.control_groups import list_groups

UNLIMITED = 2**60  # version 1 has no word for "no limit" but a number of about 2^63


@dataclass(frozen=True)
class Files:
    """Names of a control group's files.

    Attributes:
        limit, usage: files with numbers of bytes.
        reclaimable: key of memory.stat with the page cache that the kernel frees first.
    """

    limit: str
    usage: str
    reclaimable: str


FILES = {
    1: Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: Files("memory.max", "memory.current", "inactive_file"),
}


def available_memory() -> int:
    """Return the bytes that can be allocated now: what the machine has, and what each group has up to its limit."""
    left = [limit - usage for limit, usage in read_limits()]
    return max(0, min([psutil.virtual_memory().available, *left]))


def total_memory() -> int:
    """Return the bytes of the machine's memory, or of the smallest limit if there is one."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in read_limits())])


def read_limits() -> list[tuple[int, int]]:
    """Read limit and usage in bytes of this process's group and of the groups around it, as far as they have a limit.

    The usage leaves out page cache that the kernel frees on demand.
    """
    found = []
    for folder, version in list_groups("memory"):
        files = FILES[version]
        limit = read_number(folder / files.limit)
        usage = read_number(folder / files.usage)
        if limit is not None and usage is not None and limit < UNLIMITED:
            found.append((limit, max(0, usage - read_reclaimable(folder, files))))
    return found


def read_number(path: Path) -> int | None:
    """Read a file with one number; None if there is no such file, or no number such as in `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def read_reclaimable(folder: Path, files: Files) -> int:
    """Read the page cache of a group that the kernel frees first, in bytes."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    counts = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(counts.get(files.reclaimable, 0))
