"""Claims of GPUs: jobs that run at the same time without Slurm take different ones.

A claim is a locked file in the system's temporary folder, named after the GPU's UUID, since jobs may number the GPUs
differently. It is visible to jobs of the same user only, and ends with the process.

A script claims before it imports torch: bitsandbytes starts CUDA when it is imported, and CUDA then no longer reads
CUDA_VISIBLE_DEVICES.
"""

import ctypes
import fcntl
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"  # Nvidia's management library (NVML), which comes with the driver
LONGEST_UUID = 96
VISIBLE = "CUDA_VISIBLE_DEVICES"
CLAIMED = "STILLHOUSE_GPUS"  # the claimed GPUs, for the processes that the one with the claim starts
# Set by launchers, which give each process its GPU, and by Slurm in jobs with GPUs.
DECIDED = ("LOCAL_RANK", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")

_held: list[IO[bytes]] = []  # lock files, open until the process ends; the kernel then releases the locks


def claim_gpus(device: str, count: int = 1) -> None:
    """Claim GPUs that no other job has claimed, and make them the first ones of this process.

    CUDA_VISIBLE_DEVICES then lists the claimed GPUs first and the others after them, over which a model that is too
    large for one GPU is still spread. Nothing is claimed if there is a single GPU, if a launcher, Slurm or a parent
    process has decided, or if CUDA has started.

    Args:
        device: the job's device; `cpu` claims nothing.
        count: number of GPUs; if fewer are free, others are shared, with a warning.
    """
    torch = sys.modules.get("torch")
    if device == "cpu" or (torch is not None and torch.cuda.is_initialized()):
        return
    if os.environ.get(CLAIMED) or any(os.environ.get(name) for name in DECIDED):
        return
    visible = list_visible()
    if len(visible) < 2:
        return
    free = [name for name, identity in visible if len(_held) < count and lock(identity)]
    if len(free) < min(count, len(visible)):
        logger.warning("only %d of %d GPUs are free: sharing one with another job", len(free), len(visible))
    order = free + [name for name, _ in visible if name not in free]
    os.environ[VISIBLE], os.environ[CLAIMED] = ",".join(order), ",".join(order[:count])


def list_visible() -> list[tuple[str, str]]:
    """List the GPUs that CUDA will show, each with its name in CUDA_VISIBLE_DEVICES and its UUID; CUDA is not started.

    Without Nvidia's management library, the UUIDs of GPUs that are given by number are unknown, and the list is empty.
    """
    uuids = list_uuids()
    if VISIBLE not in os.environ:
        return [(uuid, uuid) for uuid in uuids]
    names = [name.strip() for name in os.environ[VISIBLE].split(",")]
    found = [(name, identify(name, uuids)) for name in names]
    return [(name, identity) for name, identity in found if identity is not None]


def list_uuids() -> list[str]:
    """List the UUIDs of the machine's GPUs in the order of their numbers.

    The list is empty without Nvidia's management library, and if a GPU is divided (MIG): CUDA then shows parts of GPUs,
    which have other names.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return []
    count, found = ctypes.c_uint(), []
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    for index in range(count.value):
        gpu, text = ctypes.c_void_p(), ctypes.create_string_buffer(LONGEST_UUID)
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(gpu)):
            return []
        if library.nvmlDeviceGetUUID(gpu, text, ctypes.c_uint(LONGEST_UUID)):
            return []
        mode, later = ctypes.c_uint(), ctypes.c_uint()
        if not library.nvmlDeviceGetMigMode(gpu, ctypes.byref(mode), ctypes.byref(later)) and mode.value:
            return []
        found.append(text.value.decode("ascii"))
    return found


def identify(name: str, uuids: Sequence[str]) -> str | None:
    """Return the UUID of a GPU, or of a part of one (MIG), by its name in CUDA_VISIBLE_DEVICES; None if unknown."""
    if name.isdigit():
        return uuids[int(name)] if int(name) < len(uuids) else None
    if name.startswith("MIG-"):
        return name
    return next((uuid for uuid in uuids if uuid.startswith(name)), None) if name.startswith("GPU-") else None


def lock(identity: str) -> bool:
    """Lock a GPU for this process; return False if another one holds the lock."""
    name = f"stillhouse-{os.getuid()}-{identity.replace('/', '_')}.lock"
    file = open(Path(tempfile.gettempdir()) / name, "ab")  # noqa: SIM115 - held open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _held.append(file)
    return True
