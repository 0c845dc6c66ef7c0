"""Jobs of a run that Slurm has in its queue, to be shown beside the table of what is to do."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

WORKING_DIRECTORY = re.compile(r"^  Working directory: (.*)$", flags=re.MULTILINE)
# squeue's fields: number, state, running for, nodes, why it waits, working directory, and the comment in which
# Snakemake's executor says which rule or group of rules the job is of, and with which wildcards.
FIELDS = "%i|%T|%M|%N|%r|%Z|%k"


@dataclass
class QueuedJob:
    """A job in the queue; `where` is its node, or why it waits."""

    number: str
    state: str
    where: str
    time: str
    what: str


def find_directory(dry_run: str) -> str | None:
    """The working directory that Snakemake names on top of a dry run."""
    match = WORKING_DIRECTORY.search(dry_run)
    return match[1] if match else None


def ask_queue() -> str | None:
    """The user's jobs as lines of FIELDS; None where there is no Slurm, or where it does not answer."""
    if shutil.which("squeue") is None:
        return None
    done = subprocess.run(["squeue", "--me", "--noheader", f"--format={FIELDS}"], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def select_jobs(queue: str, directory: str) -> list[QueuedJob]:
    """Those that a Snakemake in this working directory has submitted, running ones first."""
    jobs = []
    for line in queue.splitlines():
        number, state, time, nodes, reason, folder, comment = line.split("|", 6)
        if os.path.realpath(folder) == os.path.realpath(directory) and comment.startswith("rule_"):
            what = comment.removeprefix("rule_").replace("_wildcards_", ": ", 1)
            jobs.append(QueuedJob(number, state.lower(), nodes or reason, time, what))
    return sorted(jobs, key=lambda job: (job.state != "running", len(job.number), job.number))


def render_queue(jobs: list[QueuedJob]) -> str:
    """A line a job, under their counts by state; nothing for none."""
    if not jobs:
        return ""
    states = [job.state for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"  {job.number:<12}{job.state:<12}{job.where:<20}{job.time:>12}  {job.what}" for job in jobs]
    return "\n".join([f"Slurm: {counts}", *lines])
