"""Describe the machine of a measurement, without host names or paths, and measure its memory."""

import gc
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from distill.common.allocator import VARIABLES
from distill.models.memory import memory_mb


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return processor, cores, GPU and the relevant package versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Return the memory of a GPU, the CUDA version of torch, and the allocator's settings; empty on a CPU."""
    if device.type != "cuda":
        return {}
    total = torch.cuda.get_device_properties(device).total_memory
    allocator = next((os.environ[name] for name in VARIABLES if name in os.environ), None)
    return {"gpu_memory_mb": total // 2**20, "cuda": torch.version.cuda, "allocator": allocator}


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """Free what is not in use and start a new peak, so that building a model does not count; no effect on a CPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_peak(device: torch.device) -> dict[str, int]:
    """Return the peak memory in MiB: what tensors took and what torch reserved on a GPU, or the resident memory."""
    if device.type != "cuda":
        return {"peak_resident_mb": memory_mb(device)}
    return {
        "peak_allocated_mb": torch.cuda.max_memory_allocated() // 2**20,
        "peak_reserved_mb": torch.cuda.max_memory_reserved() // 2**20,
    }
