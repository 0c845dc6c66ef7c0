"""Free space on disks, checked before a job fills one, and sizes of folders. Imports no torch."""

import os
import shutil
from pathlib import Path

from distill.common.errors import InputError


def format_bytes(count: float) -> str:
    """Format a number of bytes in units of powers of ten, as disks are sold.

    >>> format_bytes(76_433_000_000), format_bytes(52_400), format_bytes(7)
    ('76.4 GB', '52.4 kB', '7 B')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def find_free(folder: str | os.PathLike[str]) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_free(folder: str | os.PathLike[str], needed: float, what: str, advice: str = "") -> None:
    """Check that a disk has room for what a job is about to write.

    Args:
        folder: where it is written; it need not exist yet.
        needed: bytes.
        what: what is written, for the message.
        advice: what else to do than to free space.

    Raises:
        InputError: less is free; names the folder, the need and the free space.
    """
    free = find_free(folder)
    if needed > free:
        text = f"{folder}: expected {format_bytes(needed)} of free disk for {what}, found {format_bytes(free)}"
        other = f", or {advice}" if advice else ""
        raise InputError(f"{text}; free space there (make disk lists what is stored){other}")


def measure_folder(path: str | os.PathLike[str]) -> int:
    """Return the bytes that a file, or the files below a folder, take on disk; links inside are not followed.

    A file that vanishes meanwhile counts nothing, and neither does a path that does not exist.
    """
    found = 0
    try:
        if not os.path.isdir(path):
            return os.stat(path).st_blocks * 512
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found += measure_folder(entry.path)
                else:
                    found += entry.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        pass
    return found
