"""Snakemake's Slurm executor, extended so that a run never waits forever for a job that has ended.

Without accounting, snakemake-executor-plugin-slurm 2.8.0 checks its jobs with squeue. It then loses track of

- all jobs, if one call of squeue or scontrol fails;
- a job that ends between two checks that are further apart than Slurm keeps ended jobs;
- jobs that are being submitted while the run is cancelled.
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
LONGEST_PAUSE = 60  # seconds between two checks; the plugin's own pause grows to 180
CHECKS_UNTIL_LOST = 2  # checks in a row that do not list a job, after which it counts as ended
ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 5, 3
NEVER_PURGED = 24 * 3600  # seconds used for MinJobAge = 0, which keeps ended jobs forever


class GuardedExecutor(plugin.Executor):
    """The plugin's executor, which also reports jobs that Slurm no longer lists."""

    _next_seconds_between_status_checks: float
    # Class attributes: the thread that checks jobs starts before __post_init__ returns.
    pause = LONGEST_PAUSE
    states: dict[str, str] | None = None
    lists_all_jobs = False

    def __post_init__(self, *args: Any) -> None:
        self.unlisted: Counter[str] = Counter()
        check_version()
        super().__post_init__(*args)
        if self.get_status_command() == "squeue":
            age = find_min_job_age()
            check_poll_interval(age, self.workflow.executor_settings.init_seconds_before_status_checks)
            self.pause = min(self.pause, age // 3)
            # Read once: if scontrol fails later, the plugin would switch to sacct, which may know no jobs.
            plugin.get_min_job_age = lambda: age
        else:
            check_accounting()
        self.query_plugin = plugin.query_job_status
        plugin.query_job_status = self.query

    async def query(self, command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        """Replace the plugin's query: return the states of all jobs by job id, and the seconds that it took.

        The states are None if the command failed.
        """
        is_squeue = command.startswith("squeue")
        # Without --array, squeue shows the waiting jobs of an array on one line, and none of them is found.
        found = await self.query_plugin(f"{command} --array" if is_squeue else command, logger)
        self.states, self.lists_all_jobs = found[0], is_squeue
        return found

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Report the jobs that have ended, and yield the others."""
        self.states, self.lists_all_jobs = None, False
        async for job in super().check_active_jobs(active_jobs):
            if not self.is_lost(job.external_jobid):
                yield job
            elif await self.is_complete(job.job):
                self.logger.warning(f"Slurm no longer lists job {job.external_jobid}; all of its outputs exist.")
                self.report_job_success(job)
            else:
                self.report_job_error(job, msg=explain_lost_job(job.external_jobid))
        self._next_seconds_between_status_checks = min(self._next_seconds_between_status_checks, self.pause)
        if active_jobs and self.states is None:
            self.logger.warning("Slurm did not return the states of the jobs; trying again.")
            for job in active_jobs:
                yield job

    def is_lost(self, number: str) -> bool:
        """Whether squeue has not listed a job CHECKS_UNTIL_LOST times in a row.

        Jobs of other clusters are never lost, nor are jobs that are checked with sacct, which lists new jobs late.
        """
        is_listed = any(one in (self.states or {}) for one in plugin._status_lookup_ids(number))
        if is_listed or not self.lists_all_jobs or self._submitted_job_clusters:
            self.unlisted.pop(number, None)
        else:
            self.unlisted[number] += 1
        return self.unlisted[number] >= CHECKS_UNTIL_LOST

    async def is_complete(self, job: Any) -> bool:
        """Whether all outputs exist and none is marked as incomplete: a job removes the marks when it succeeds."""
        for one in job.jobs if job.is_group() else [job]:
            if await self.workflow.persistence.incomplete(one):
                return False
            for path in one.output:
                if not await path.exists():
                    return False
        return True

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs of this run by its name, including those that are being submitted."""
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        clusters = ["--clusters=all"] if self._submitted_job_clusters else []
        try:
            run_slurm("scancel", "--name", self.run_uuid, *clusters)
        except WorkflowError as error:
            command = f"scancel --name {self.run_uuid}"
            self.logger.warning(f"Some jobs may still be in Slurm's queue. To cancel them: {command}\n{error}")


def run_slurm(*command: str) -> str:
    """Run a Slurm command, up to ATTEMPTS times, and return its output.

    Raises:
        WorkflowError: every attempt failed.
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
    """Check that the plugin has the version that this module extends.

    Raises:
        WorkflowError: it has another version.
    """
    if (found := version("snakemake-executor-plugin-slurm")) != VERSION:
        raise WorkflowError(f"expected snakemake-executor-plugin-slurm {VERSION} (requirements.txt), found {found}")


def check_accounting() -> None:
    """Check that Slurm's accounting is available.

    Raises:
        WorkflowError: sacct fails.
    """
    try:
        run_slurm("sacct", "--noheader", "--starttime=now")
    except WorkflowError as error:
        raise WorkflowError(
            f"{error}\nWithout accounting, a run that checks its jobs with sacct never ends: expected "
            "slurm-status-command: squeue in the profile. No job was submitted."
        ) from None


def find_min_job_age() -> int:
    """Return the seconds for which Slurm lists a job after its end.

    Raises:
        WorkflowError: scontrol fails.
    """
    try:
        text = run_slurm("scontrol", "show", "config")
    except WorkflowError as error:
        raise WorkflowError(
            f"{error}\nIs this a login node of the cluster, and does its controller respond (scontrol ping)? "
            "No job was submitted."
        ) from None
    if not (match := re.search(r"^MinJobAge\s*=\s*(\d+)", text, flags=re.MULTILINE)):
        raise WorkflowError("`scontrol show config`: expected a line MinJobAge = SECONDS. No job was submitted.")
    return int(match[1]) or NEVER_PURGED


def check_poll_interval(age: int, first: int) -> None:
    """Check that the end of a job is seen while Slurm still lists the job.

    Args:
        age: Slurm's MinJobAge, in seconds.
        first: seconds until the first check of a job.

    Raises:
        WorkflowError: the first check may come too late.
    """
    if age < 3 * first:
        raise WorkflowError(
            f"Slurm lists jobs until {age} s after their end (MinJobAge in `scontrol show config`). A run that first "
            f"checks them after {first} s may miss the end of a job and never end: expected "
            f"slurm-init-seconds-before-status-checks of at most {age // 3} in the profile, or, with accounting, "
            "slurm-status-command: sacct. No job was submitted."
        )


def explain_lost_job(number: str) -> str:
    """Describe the failure of a job that Slurm no longer lists."""
    return (
        f"Slurm no longer lists job {number}, its end was not seen, and some of its outputs are missing: it counts as "
        "failed. Rerun the same command to start it again. "
    )


def install() -> None:
    """Make Snakemake use GuardedExecutor for `--executor slurm`."""
    ExecutorPluginRegistry().get_plugin("slurm").executor = GuardedExecutor
