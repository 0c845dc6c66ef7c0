"""Devices that a memory plan is made for. Imports no torch."""

import re
from dataclasses import dataclass

import psutil

from distill.common.errors import InputError

GIB = 2**30
# CUDA's context with the kernels, and the workspaces of cuBLAS. An assumption, since only a GPU could tell.
CONTEXT = int(0.6 * GIB)
SPARE = 0.1  # share of a device that a plan leaves free before it says that something fits
NAME = re.compile(r"(?P<size>\d+(\.\d+)?)\s*(?P<unit>GB|GiB)", flags=re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: as on the command line.
        memory: bytes that torch sees.
        kind: `cuda` or `cpu`.
        is_unified: whether GPU and processor share the memory.
        reserved: bytes that are not for tensors: CUDA's context, and on shared memory the system.
    """

    name: str
    memory: int
    kind: str = "cuda"
    is_unified: bool = False
    reserved: int = CONTEXT

    @property
    def usable(self) -> int:
        """Bytes for tensors."""
        return self.memory - self.reserved


SYSTEM = 6 * GIB  # what jobs leave free on shared memory, see INTEGRATED_RESERVE in models/memory.py
# Memory as torch reports it, which is less than the nominal size.
DEVICES = {
    device.name: device
    for device in (
        Device("a100-40", int(39.4 * GIB)),
        Device("a100-80", int(79.1 * GIB)),
        Device("h100-80", int(79.1 * GIB)),
        Device("gb10-128", int(119.6 * GIB), is_unified=True, reserved=CONTEXT + SYSTEM),
    )
}


def find_device(name: str) -> Device:
    """Return the device of a name: a key of DEVICES, `cpu` for this machine's memory, or a GPU's size such as `24GB`.

    Raises:
        InputError: the name is none of these.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name == "cpu":
        return Device("cpu", psutil.virtual_memory().total, kind="cpu", is_unified=True, reserved=2 * GIB)
    if match := NAME.fullmatch(name):
        unit = GIB if match["unit"].lower() == "gib" else 10**9
        return Device(name, int(float(match["size"]) * unit))
    raise InputError(f"--device: expected {' | '.join(DEVICES)} | cpu | a size such as 24GB, found {name!r}")
