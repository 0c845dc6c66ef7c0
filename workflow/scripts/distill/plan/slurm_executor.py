"""Snakemake's Slurm executor, guarded against waiting for ever for a job that has ended.

snakemake-executor-plugin-slurm 2.8.0 asks squeue for its jobs where there is no accounting. It loses sight of them all
where squeue or scontrol does not answer once, of one that ends between two looks which are further apart than Slurm
remembers it, and of those that are submitted while a run is being cancelled.
"""

import re
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import snakemake_executor_plugin_slurm as plugin
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

VERSION = "2.8.0"  # of the plugin
LONGEST_PAUSE = 60  # seconds between two looks, where the plugin's own grow to 180
LOOKS_IN_VAIN = 2  # in a row, until a job that squeue does not list counts as forgotten


ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 5, 3
NEVER_PURGED = 24 * 3600  # seconds that stand for a MinJobAge of 0


class GuardedExecutor(plugin.Executor):
    """The plugin's executor, which waits for jobs that Slurm still knows and no others."""

    _next_seconds_between_status_checks: float
    # Looks begin in a thread of their own before __post_init__ has ended.
    pause = LONGEST_PAUSE
    answer: dict[str, str] | None = None
    is_complete = False

    def __post_init__(self, *args: Any) -> None:
        self.in_vain: Counter[str] = Counter()
        check_version()
        super().__post_init__(*args)
        if self.get_status_command() == "squeue":
            age = find_min_job_age()
            check_pace(age, self.workflow.executor_settings.init_seconds_before_status_checks)
            self.pause = min(self.pause, age // 3)
            # Asked once: where scontrol fails later, the plugin would ask sacct, which may know nothing.
            plugin.get_min_job_age = lambda: age
        else:
            check_accounting()
        self.ask_status = plugin.query_job_status
        plugin.query_job_status = self.query

    async def query(self, command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        """The states of all jobs by number and the seconds it took, as the plugin asks for them; None: no answer."""
        by_squeue = command.startswith("squeue")
        # Else the jobs of an array that wait are one line, and none of them is found.
        found = await self.ask_status(f"{command} --array" if by_squeue else command, logger)
        self.answer, self.is_complete = found[0], by_squeue
        return found

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Report the jobs that have ended, and yield the others."""
        self.answer, self.is_complete = None, False
        async for job in super().check_active_jobs(active_jobs):
            if not self.is_forgotten(job.external_jobid):
                yield job
            elif await self.has_ended_well(job.job):
                self.logger.warning(f"Slurm does not know job {job.external_jobid} any more; its files are all there.")
                self.report_job_success(job)
            else:
                self.report_job_error(job, msg=explain(job.external_jobid))
        self._next_seconds_between_status_checks = min(self._next_seconds_between_status_checks, self.pause)
        if active_jobs and self.answer is None:
            self.logger.warning("Slurm did not say how its jobs are: asking again.")
            for job in active_jobs:
                yield job

    def is_forgotten(self, number: str) -> bool:
        """Whether squeue has not listed a job several times: one of this cluster, where sacct lists new ones late."""
        is_listed = any(one in (self.answer or {}) for one in plugin._status_lookup_ids(number))
        if is_listed or not self.is_complete or self._submitted_job_clusters:
            self.in_vain.pop(number, None)
        else:
            self.in_vain[number] += 1
        return self.in_vain[number] >= LOOKS_IN_VAIN

    async def has_ended_well(self, job: Any) -> bool:
        """Whether all outputs are there and none is marked as begun: the job takes the mark away when it has ended."""
        for one in job.jobs if job.is_group() else [job]:
            if await self.workflow.persistence.incomplete(one):
                return False
            for path in one.output:
                if not await path.exists():
                    return False
        return True

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs of this run by its name, those that are being submitted too."""
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        clusters = ["--clusters=all"] if self._submitted_job_clusters else []
        try:
            ask("scancel", "--name", self.run_uuid, *clusters)
        except WorkflowError as error:
            self.logger.warning(f"Jobs may be left in Slurm's queue: scancel --name {self.run_uuid}\n{error}")


def ask(*command: str) -> str:
    """What a command of Slurm's says, several times where it fails.

    Raises:
        WorkflowError: it has failed each time.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError) as failure:
            error = f"`{' '.join(command)}`: {(getattr(failure, 'stderr', None) or str(failure)).strip()}"
    raise WorkflowError(error)


def check_version() -> None:
    """Whether the plugin is the one that is guarded here.

    Raises:
        WorkflowError: it is another.
    """
    if (found := version("snakemake-executor-plugin-slurm")) != VERSION:
        raise WorkflowError(f"expected snakemake-executor-plugin-slurm {VERSION} (requirements.txt), found {found}")


def check_accounting() -> None:
    """Whether sacct knows of jobs.

    Raises:
        WorkflowError: there is no accounting, or it does not answer.
    """
    try:
        ask("sacct", "--noheader", "--starttime=now")
    except WorkflowError as error:
        raise WorkflowError(
            f"{error}\nA run that asks sacct would wait for its jobs for ever: expected slurm-status-command: squeue "
            "in the profile where there is no accounting. Nothing was submitted."
        ) from None


def find_min_job_age() -> int:
    """Seconds for which Slurm remembers a job that has ended.

    Raises:
        WorkflowError: Slurm's controller does not answer.
    """
    try:
        text = ask("scontrol", "show", "config")
    except WorkflowError as error:
        raise WorkflowError(
            f"{error}\nIs this a login node of the cluster, and does its controller answer (scontrol ping)? "
            "Nothing was submitted."
        ) from None
    if not (match := re.search(r"^MinJobAge\s*=\s*(\d+)", text, flags=re.MULTILINE)):
        raise WorkflowError("`scontrol show config`: expected a line MinJobAge = SECONDS. Nothing was submitted.")
    return int(match[1]) or NEVER_PURGED


def check_pace(age: int, first: int) -> None:
    """Whether a job that has ended is seen before Slurm forgets it.

    Args:
        age: Slurm's MinJobAge, in seconds.
        first: seconds until the first look at a job.

    Raises:
        WorkflowError: it would not be.
    """
    if age < 3 * first:
        raise WorkflowError(
            f"Slurm forgets jobs {age} s after their end (MinJobAge in `scontrol show config`), and a run that first "
            f"asks squeue after {first} s may wait for them for ever: expected slurm-init-seconds-before-status-checks "
            f"of at most {age // 3} in the profile, or, with accounting, slurm-status-command: sacct. "
            "Nothing was submitted."
        )


def explain(number: str) -> str:
    """What to do about a job that Slurm has forgotten."""
    return (
        f"Slurm does not know job {number} any more, it was not seen to end, and not all of its files are there: it "
        "counts as failed. The same command starts it again. "
    )


def install() -> None:
    """Have Snakemake take the guarded executor for `--executor slurm`."""
    ExecutorPluginRegistry().get_plugin("slurm").executor = GuardedExecutor
