"""The control groups of this process (containers, Slurm jobs), whose files tell what it may use. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

OWN_GROUPS = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")


def list_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """List the groups that limit what `controller` (`cpu`, `memory`) governs, from this process's own to the topmost.

    A folder need not exist: in a container the path may be that of the host, of which only the root is mounted.

    Yields:
        A group's folder, and 1 or 2, the version of Linux's control groups, which says how the folder's files are
        named. Nothing on a system without control groups.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            yield MOUNTED / controllers / part, 1 if controllers else 2
