"""Where the shards of a teacher signal are: in `data/` beside its index, or on another disk, to which `data` links."""

import logging
import os
import shutil
from pathlib import Path

from distill.common.disk import check_free, measure_folder
from distill.common.errors import InputError

logger = logging.getLogger(__name__)

DATA, OWNER = "data", "owner.txt"  # the owner is the signal whose `data` links to a store


def open_data(out: Path, store: Path | None) -> Path:
    """Return the folder `data` of a signal, which is made if needed, and moved to the store if it is elsewhere.

    Args:
        out: folder of the signal.
        store: folder on another disk for the data of this signal alone; None leaves them where they are.

    Raises:
        InputError: the store belongs to another signal, does not hold what it should, or is too small.
    """
    data = out / DATA
    if data.is_symlink() and not data.exists():
        raise InputError(
            f"{data}: expected its folder {os.readlink(data)}, found none; mount its disk, or, if you have deleted it, "
            "remove the link"
        )
    if store is None:
        data.mkdir(parents=True, exist_ok=True)
        return data
    target = store / DATA
    claim_store(store, data)
    target.mkdir(exist_ok=True)
    if not (data.exists() and data.samefile(target)):
        if data.exists():
            move_files(data, target)
        link(data, target)
    return data


def claim_store(store: Path, data: Path) -> None:
    """Note in a store whose it is, so that no other signal removes its shards.

    Raises:
        InputError: another signal uses it.
    """
    store.mkdir(parents=True, exist_ok=True)
    owner = store / OWNER
    if owner.exists():
        other = Path(owner.read_text(encoding="utf-8"))
        if other != data.absolute() and other.exists() and other.samefile(store / DATA):
            raise InputError(
                f"{store}: expected a folder for the teacher signal {data.parent.absolute()} alone, found that of "
                f"{other.parent}; set `signals` to another folder for each working directory"
            )
    owner.write_text(str(data.absolute()), encoding="utf-8")


def move_files(source: Path, target: Path) -> None:
    """Move all files; one that is interrupted leaves each file whole in one of the two folders.

    Raises:
        InputError: the disk of the target is too small.
    """
    logger.info("moving the teacher signal from %s to %s", source.resolve(), target)
    check_free({target: measure_folder(source.resolve())}, "the teacher signal that is moved there")
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f".{place.name}.tmp")
        shutil.copyfile(path, aside)
        os.replace(aside, place)
        path.unlink()


def link(data: Path, target: Path) -> None:
    """Make `data` a link to a folder, in place of an empty folder or another link. A relative target stays relative."""
    if data.is_symlink():
        data.unlink()
    elif data.exists():
        shutil.rmtree(data)
    data.parent.mkdir(parents=True, exist_ok=True)
    data.symlink_to(target if target.is_absolute() else os.path.relpath(target.resolve(), data.parent.resolve()))
