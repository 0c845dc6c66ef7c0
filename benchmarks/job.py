"""A job of gpu.py in a process of its own. Imports no torch.

    python benchmarks/SCRIPT.py JOB RESULT

JOB is JSON with `kind`, `settings` and what the kind needs. RESULT is a JSON file with `result` or, if the job failed,
with `failed`, the reason. The process ends when its standard input does, so that it does not outlive gpu.py.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.common.errors import InputError, start_logging
from distill.common.files import write_json


def run_as_job(
    work: Callable[[dict[str, Any]], dict[str, Any]],
    describe_failure: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Do the job of the command line, write its result, and end this process.

    Args:
        work: does a job and returns its result.
        describe_failure: returns what to record of a job that failed, beside the reason.
    """
    start_logging()
    threading.Thread(target=end_with_parent, daemon=True).start()
    job, path = json.loads(sys.argv[1]), Path(sys.argv[2])
    try:
        outcome = {"result": work(job)}
    except Exception as error:  # an alternative may fail in any way; gpu.py records the reason
        traceback.print_exc()
        outcome = {"failed": explain(error)} | (describe_failure(job) if describe_failure else {})
    write_json(path, outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what a library still does at its end must not take the time of the next measurement


def end_with_parent() -> None:
    """End this process at the end of its standard input, which gpu.py holds open."""
    sys.stdin.buffer.read()
    os._exit(1)


def explain(error: Exception) -> str:
    """Return the reason of a failure in one line."""
    from distill.models.batches import is_out_of_memory

    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if is_out_of_memory(error):
        return f"out of memory: {text.partition('. ')[2].partition('. ')[0] or text}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
