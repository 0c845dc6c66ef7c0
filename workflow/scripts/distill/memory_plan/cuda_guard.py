"""Make fake CUDA tensors possible on a machine without a GPU. Imports no torch, since it must run before torch does."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from distill.common.errors import InputError

SOURCE = Path(__file__).with_name("cuda_guard.cpp")


def load_cuda_guard() -> None:
    """Load the device guard and hooks of `cuda_guard.cpp`; they are compiled once for each torch, in a few seconds.

    A GPU that is there stays unused: the process cannot compute on it afterwards.

    Raises:
        InputError: torch is not installed, or there is no C++ compiler.
        RuntimeError: torch has been imported already.
    """
    if "torch" in sys.modules:
        raise RuntimeError("load_cuda_guard must be called before torch is imported")
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise InputError("the memory plan needs the package torch, which is not installed")
    ctypes.CDLL(str(build(Path(found.origin).parent)), mode=ctypes.RTLD_GLOBAL).set_cuda_guard()


def build(torch: Path) -> Path:
    """Compile the guard for the torch in a folder, unless that is done; return the library.

    Raises:
        InputError: there is no C++ compiler, or it fails.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse"
    version = (torch / "version.py").read_text(encoding="utf-8") + SOURCE.read_text(encoding="utf-8")
    library = folder / f"cuda_guard_{hashlib.sha256(f'{torch}{version}'.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = os.environ.get("CXX") or next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if compiler is None:
        raise InputError("the memory plan of a GPU needs a C++ compiler, found none; install g++, or set CXX")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / library.name
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch}/include"]
        libraries = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
        command = [compiler, *options, str(SOURCE), "-o", str(made), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{compiler} cannot compile {SOURCE.name} against torch in {torch}:\n{done.stderr}")
        made.replace(library)
    return library
