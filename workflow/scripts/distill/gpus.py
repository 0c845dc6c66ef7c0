"""One GPU a job: jobs side by side on a machine of several GPUs each take one that no other job has."""

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

log = logging.getLogger(__name__)

_held: list[IO[bytes]] = []  # for the life of the process; the kernel lets go of a lock however a process ends


def claim_gpu() -> torch.device:
    """The first visible GPU that no other job has claimed; the first of all, with a warning, where there is none.

    Locks are files beside each other in the machine's folder for temporary files, named by the GPU's own id, so that
    jobs that see the GPUs in another order agree. They hold between jobs of one user.
    """
    count = torch.cuda.device_count()
    for index in range(count):
        name = f"stillhouse-{os.getuid()}-{torch.cuda.get_device_properties(index).uuid}.lock"
        file = open(Path(tempfile.gettempdir()) / name, "ab")  # noqa: SIM115 - held open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        return torch.device("cuda", index)
    log.warning("each of the %d GPUs has a job of its own; this one shares the first", count)
    return torch.device("cuda", 0)
