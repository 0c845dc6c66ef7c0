"""Run a job of gpu.py in a process of its own, with a time limit. Imports no torch."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPTS = {"plan": "planned_peak.py"}  # by kind of job; all others are run by gpu_measure.py
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHOWN_LINES = 30  # of the output of a job that failed


def run_job(job: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run a job and return its `result`, or `failed`, the reason, and `log`, the last lines of its output.

    Args:
        job: see job.py.
        seconds: time limit, after which the process and all that it has started are killed.
    """
    script = FOLDER / SCRIPTS.get(job["kind"], "gpu_measure.py")
    with tempfile.TemporaryDirectory() as name:
        path, log = Path(name) / "result.json", Path(name) / "log.txt"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(script), json.dumps(job), str(path)],
                stdin=subprocess.PIPE,  # held open: the job ends with this process
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | OFFLINE,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=seconds)
                reason = describe_exit(code)
            except subprocess.TimeoutExpired:
                reason = f"stopped after {seconds:.0f} s, the time limit"
            finally:
                kill_session(process)
        lines = log.read_text(errors="replace").splitlines()
        last = f": {lines[-1].strip()}" if lines and "exit code" in reason else ""
        outcome: dict[str, Any] = {"failed": reason + last}
        if path.exists():
            outcome = json.loads(path.read_text())
        if "failed" in outcome:
            outcome["log"] = "\n".join(lines[-SHOWN_LINES:])
        return outcome


def describe_exit(code: int) -> str:
    """Return why a process without a result ended."""
    if code == -signal.SIGKILL:
        return "the process was killed (signal 9), probably because the machine's memory ran out"
    return f"the process was ended by signal {-code}" if code < 0 else f"the process ended with exit code {code}"


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()
