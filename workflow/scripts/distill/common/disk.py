"""Free space on disks, checked before a job fills one, and sizes of folders. Imports no torch."""

import os
import shutil
from collections.abc import Mapping
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


def find_existing(folder: str | os.PathLike[str]) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    path = Path(folder).absolute()
    return path if path.exists() else find_existing(path.parent)


def find_free(folder: str | os.PathLike[str]) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(find_existing(folder)).free


def check_free(needs: Mapping[Path, float], what: str, advice: str = "") -> None:
    """Check that disks have room for what a job is about to write.

    Args:
        needs: bytes by folder, which need not exist yet. Folders on the same disk need theirs together.
        what: what is written, for the message.
        advice: what else to do than to free space.

    Raises:
        InputError: less is free; names the folder, the need and the free space.
    """
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(find_existing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        needed, free = sum(max(0, needs[folder]) for folder in folders), find_free(folders[0])
        if needed > free:
            listed = " and ".join(map(str, folders))
            text = f"{listed}: expected {format_bytes(needed)} of free disk for {what}, found {format_bytes(free)}"
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
