"""Imports of the benchmarks, which are scripts beside each other and import one another by name."""

import importlib
import sys
from types import ModuleType

from running import ROOT


def import_benchmark(name: str) -> ModuleType:
    """Import a benchmark. Its folder stays in `sys.path` no longer: a benchmark and a script may have one name."""
    known = list(sys.path)
    sys.path.append(str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = known
