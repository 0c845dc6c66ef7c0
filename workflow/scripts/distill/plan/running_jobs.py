"""The jobs of a run that are running now, from the files that they write (`common/progress_file.py`) and their logs."""

import json
import os
import re
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.common.errors import cut
from distill.common.progress import format_duration
from distill.common.progress_file import FOLDER, HEARTBEAT_SECONDS, LOGS, identify_machine, read_process
from distill.plan.text_table import render_columns

# A job on another machine is taken to run as long as its heartbeat is not older: file systems that machines share may
# show a change a minute late.
SILENCE_SECONDS = 4 * HEARTBEAT_SECONDS + 60
OLD_FIGURES_SECONDS = 60  # older figures are shown with their age
TAIL_BYTES = 4096
LONGEST_LINE = 60
TIME_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
ENDED_STATES = "ZX"  # of a process, see proc(5)
STOPPED_STATES = "Tt"
COLUMNS = ("running", "progress", "speed", "left", "peak memory", "loss", "for", "where")


@dataclass(frozen=True)
class FoundJob:
    """A job that has a progress file.

    Attributes:
        log: its log, relative to the working directory.
        is_running: whether it still runs.
        where: its process and machine; if it does not run, how that is known.
        figures: what it wrote; see `ProgressFile` and `Progress.get_figures`.
        message: the last line of its log.
    """

    log: str
    is_running: bool
    where: str
    figures: dict[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def name(self) -> str:
        """The log's path without its folder and suffix, which has the rule and the wildcards."""
        return str(Path(self.log).relative_to(LOGS).with_suffix(""))


def find_jobs(directory: Path) -> list[FoundJob]:
    """Return the jobs with a progress file in a working directory, in the order of their start."""
    found = []
    for path in (directory / FOLDER).glob("*.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            is_running, where = judge_job(facts, time.time() - path.stat().st_mtime)
            job = FoundJob(facts["log"], is_running, where, facts, read_last_line(directory / facts["log"]))
            found.append((float(facts["started"]), job))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # the job has ended meanwhile, or the file is none of this version's
    return [job for _, job in sorted(found, key=lambda pair: pair[0])]


def judge_job(facts: dict[str, Any], silence: float) -> tuple[bool, str]:
    """Tell whether a job still runs.

    On this machine, the process must exist and have started when the job did, since numbers of processes come again.
    On another machine, or in a container with its own numbers, the heartbeat must be recent.

    Args:
        facts: content of its file.
        silence: seconds since the last heartbeat.

    Returns:
        Whether it runs; its process and machine, or how it is known not to run.
    """
    machine, host, pid = identify_machine(), facts["host"], facts["pid"]
    if "start" in facts and all(machine.get(name, "") == facts.get(name) for name in ("boot", "namespace")):
        process = read_process(pid)
        if process is None or process[1] != facts["start"] or process[0] in ENDED_STATES:
            return False, f"process {pid} is gone"
        return True, f"process {pid}, stopped by a signal" if process[0] in STOPPED_STATES else f"process {pid}"
    age = format_duration(max(silence, 0))
    if silence > SILENCE_SECONDS:
        return False, f"no sign of process {pid} on {host} for {age}"
    return True, f"process {pid} on {host}, seen {age} ago"


def read_last_line(path: Path) -> str:
    """Return the last line of a log that is not blank, without its time; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return cut(TIME_STAMP.sub("", last), LONGEST_LINE)


def describe_progress(job: FoundJob, now: float) -> str:
    """Return how far a job is: counts with their age if they are old, or the last line of its log without counts."""
    figures = job.figures
    if "total" not in figures:
        return job.message
    share = f" ({figures['done'] / figures['total']:.0%})" if figures["total"] else ""
    age = now - figures["time"]
    old = f", {format_duration(age)} ago" if age > OLD_FIGURES_SECONDS else ""
    return f"{figures['what']}: {figures['done']} of {figures['total']} {figures['unit']}{share}{old}"


def describe_speed(figures: dict[str, Any]) -> str:
    """Return tokens per second, or else what is counted per second or minute."""
    if "tokens_per_second" in figures:
        return f"{figures['tokens_per_second']:.0f} tokens/s"
    speed = figures.get("units_per_second")
    if not speed:
        return ""
    return f"{speed:.1f} {figures['unit']}/s" if speed >= 1 else f"{60 * speed:.1f} {figures['unit']}/min"


def describe_loss(figures: dict[str, Any]) -> str:
    """Return the loss of the last logged steps, and that of the last validation."""
    parts = [f"{figures['loss']:.4g}"] if "loss" in figures else []
    return ", ".join([*parts, *([f"validation {figures['val_loss']:.4g}"] if "val_loss" in figures else [])])


def render_jobs(jobs: Sequence[FoundJob], to_do: Container[str]) -> str:
    """Render a line for each running job, and for each that was interrupted and is still to do.

    Args:
        jobs: from `find_jobs`.
        to_do: logs of the jobs that are to do.
    """
    now = time.time()
    rows = []
    for job in jobs:
        figures = job.figures
        if job.is_running:
            left, memory = figures.get("seconds_left"), figures.get("memory_mb")
            rows.append(
                [
                    job.name,
                    describe_progress(job, now),
                    describe_speed(figures),
                    "" if left is None else format_duration(left),
                    f"{memory} MiB" if memory else "",
                    describe_loss(figures),
                    format_duration(max(now - figures["started"], 0)),
                    job.where,
                ]
            )
    lines = render_columns(COLUMNS, rows) if rows else []
    interrupted = [job for job in jobs if not job.is_running and job.log in to_do]
    if interrupted:
        width = max(len(job.name) for job in interrupted) + 2
        lines += ["interrupted; the next run resumes them:"]
        lines += [f"  {job.name.ljust(width)}{job.where}" for job in interrupted]
    return "\n".join(lines)
