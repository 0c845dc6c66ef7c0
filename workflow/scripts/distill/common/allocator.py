"""Settings of torch's allocator for GPUs, which it reads when CUDA starts. Imports no torch."""

import os
import platform

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the name of older versions
# Segments of memory that grow. Segments of a fixed size cannot be joined: a KV cache that grows, or batches of other
# lengths, leave gaps in them that nothing fits.
EXPANDABLE = "expandable_segments:True"


def set_allocator() -> None:
    """Set the allocator to use expandable segments, unless the user has set it.

    torch supports them on Linux only. Windows's subsystem for Linux, whose driver shares memory with Windows, keeps the
    default.
    """
    is_linux = platform.system() == "Linux" and "microsoft" not in platform.release().lower()
    if is_linux and not any(name in os.environ for name in VARIABLES):
        os.environ[VARIABLES[0]] = EXPANDABLE
