"""Record which files of a folder are opened, in any process and also to be mapped, with inotify."""

import ctypes
import os
import struct
from contextlib import contextmanager

IN_OPEN, IN_NONBLOCK = 0x20, 0o4000


@contextmanager
def watch_opened(folder):
    """Yield a set that holds the names of the opened files once the block has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(IN_NONBLOCK)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(folder), IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    names = set()
    try:
        yield names
        while True:
            try:
                events = os.read(watch, 65536)
            except BlockingIOError:
                break
            while events:
                size = struct.unpack_from("iIII", events)[3]
                names.add(events[16 : 16 + size].rstrip(b"\0").decode())
                events = events[16 + size :]
    finally:
        os.close(watch)
