"""The guarded Slurm executor, with fake Slurm commands."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin
from running import ROOT
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
from throttler import Throttler

from distill.plan import slurm_executor
from distill.plan.slurm_executor import GuardedExecutor, check_poll_interval

SCONTROL = 'echo "MinJobAge               = {age} sec"'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Replace Slurm's commands by lines of shell."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(plugin, "get_min_job_age", None)  # not to be called
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)
    monkeypatch.setattr(slurm_executor, "SECONDS_BETWEEN_ATTEMPTS", 0)

    def slurm(**commands):
        for name, line in commands.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
        return tmp_path

    slurm(sacct="echo Slurm accounting storage is disabled >&2; exit 1")
    return slurm


@pytest.fixture
def executor(slurm, monkeypatch, tmp_path):
    """An executor that uses squeue, started with a MinJobAge of 300; `ended` has the jobs that it reports."""
    monkeypatch.chdir(tmp_path)
    slurm(scontrol=SCONTROL.format(age=300))
    executor = object.__new__(GuardedExecutor)
    executor.logger = logging.getLogger("executor")
    settings = plugin.ExecutorSettings(
        status_command="squeue", init_seconds_before_status_checks=20, status_attempts=2, jobname_prefix="run"
    )
    marks = SimpleNamespace(incomplete=lambda job: answer([path for path in job.output if path.is_begun]))
    executor.workflow = SimpleNamespace(executor_settings=settings, workdir_init=tmp_path, persistence=marks)
    executor.status_rate_limiter = Throttler(rate_limit=100, period=1)
    executor._next_seconds_between_status_checks = 20
    executor.__post_init__(True)
    executor.ended = {}
    executor.report_job_success = lambda job: executor.ended.update({job.external_jobid: "well"})
    executor.report_job_error = lambda job, msg, **_: executor.ended.update({job.external_jobid: msg})
    return executor


async def answer(value):
    return value


def make_job(**outputs):
    """Make a job whose outputs are `there`, `begun` or `missing`."""
    files = {
        name: SimpleNamespace(is_begun=state == "begun", exists=lambda state=state: answer(state != "missing"))
        for name, state in outputs.items()
    }
    return SimpleNamespace(output=list(files.values()), is_group=lambda: False)


def look(executor, *numbers, job=None):
    """Check the jobs, and return the ids of those that have not ended."""
    job = job or make_job(one="missing")
    jobs = [SubmittedJobInfo(job, number, {"slurm_logfile": executor.slurm_logdir / "log"}) for number in numbers]

    async def collect():
        return [job.external_jobid async for job in executor.check_active_jobs(jobs)]

    return asyncio.run(collect())


def test_jobs_that_have_ended_are_reported_and_others_waited_for(executor, slurm):
    slurm(squeue='echo "1|COMPLETED"; echo "2|RUNNING"; echo "3|FAILED"; echo "4|PENDING"')
    assert look(executor, "1", "2", "3", "4") == ["2", "4"]
    assert executor.ended.keys() == {"1", "3"}


def test_a_squeue_that_does_not_answer_loses_no_job(executor, slurm, caplog):
    slurm(squeue="exit 1")
    assert look(executor, "1", "2") == ["1", "2"]
    assert "Slurm did not return the states" in caplog.text
    slurm(squeue='echo "1|COMPLETED"; echo "2|RUNNING"')
    assert look(executor, "1", "2") == ["2"]
    assert executor.ended == {"1": "well"}


def test_a_scontrol_that_fails_later_does_not_lead_to_sacct(executor, slurm):
    slurm(scontrol="exit 1", squeue='echo "1|COMPLETED"')
    assert look(executor, "1") == []
    assert executor.ended == {"1": "well"}


def test_a_job_that_squeue_no_longer_lists_has_ended(executor, slurm):
    slurm(squeue='echo "2|RUNNING"')
    assert look(executor, "1", "2") == ["1", "2"]
    assert look(executor, "1", "2") == ["2"]
    assert "no longer lists job 1" in executor.ended["1"]


@pytest.mark.parametrize(
    ("states", "is_well"),
    [
        ({"one": "there", "two": "there"}, True),
        ({"one": "there", "two": "begun"}, False),
        ({"one": "there", "two": "missing"}, False),
    ],
)
@pytest.mark.parametrize("is_group", [False, True])
def test_a_forgotten_job_whose_files_are_there_has_ended_well(executor, slurm, states, is_well, is_group):
    """Otherwise Snakemake would remove its files, including the weights from days of training."""
    slurm(squeue="")
    job = make_job(**states)
    if is_group:
        job = SimpleNamespace(jobs=[make_job(one="there"), job], is_group=lambda: True)
    assert look(executor, "1", job=job) == ["1"]
    assert look(executor, "1", job=job) == []
    assert (executor.ended["1"] == "well") == is_well


def test_jobs_of_another_cluster_are_never_lost(executor, slurm):
    slurm(squeue="")
    executor._submitted_job_clusters.add("other")
    for _ in range(3):
        assert look(executor, "1") == ["1"]


def test_a_job_may_be_missing_from_one_check(executor, slurm):
    for lines in ("", 'echo "1|RUNNING"', ""):
        slurm(squeue=lines)
        assert look(executor, "1") == ["1"]
    assert executor.ended == {}


def test_jobs_of_an_array_are_listed_one_by_one(executor, slurm):
    """By default, squeue lists waiting jobs of an array on one line, 7_[1-2]."""
    slurm(squeue='case "$*" in *--array*) echo "7_1|PENDING"; echo "7_2|PENDING";; *) echo "7_[1-2]|PENDING";; esac')
    for _ in range(3):
        assert look(executor, "7_1", "7_2") == ["7_1", "7_2"]


def test_pauses_between_checks_stay_within_min_job_age(executor, slurm):
    slurm(squeue='echo "1|RUNNING"')
    pauses = []
    for _ in range(8):
        look(executor, "1")
        pauses.append(executor.next_seconds_between_status_checks)
    assert pauses == [30, 40, 50, 60, 60, 60, 60, 60]
    executor.pause = 15
    look(executor, "1")
    assert executor.next_seconds_between_status_checks == 15


def test_a_run_that_could_wait_for_ever_does_not_start(executor, slurm):
    slurm(scontrol=SCONTROL.format(age=30))
    with pytest.raises(WorkflowError, match=r"30 s after their end .* at most 10 in the profile"):
        executor.__post_init__(True)
    slurm(scontrol="echo no controller >&2; exit 1")
    with pytest.raises(WorkflowError, match=r"`scontrol show config`: no controller\nIs this a login node"):
        executor.__post_init__(True)
    slurm(scontrol="echo")
    with pytest.raises(WorkflowError, match="expected a line MinJobAge"):
        executor.__post_init__(True)
    executor.workflow.executor_settings.status_command = "sacct"
    with pytest.raises(WorkflowError, match="(?s)storage is disabled.*expected slurm-status-command: squeue"):
        executor.__post_init__(True)


def test_a_slow_slurm_and_a_min_job_age_of_0_are_accepted(executor, slurm, tmp_path):
    slurm(scontrol=f"[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; exit 1; }}; {SCONTROL.format(age=0)}")
    executor.__post_init__(True)
    assert plugin.get_min_job_age() == slurm_executor.NEVER_PURGED


def test_another_plugin_is_refused(executor, monkeypatch):
    monkeypatch.setattr(slurm_executor, "version", lambda name: "2.9.0")
    with pytest.raises(WorkflowError, match=r"expected snakemake-executor-plugin-slurm 2\.8\.0 .* found 2\.9\.0"):
        executor.__post_init__(True)


def test_the_plugin_that_is_guarded_is_the_one_that_is_required():
    assert f"snakemake-executor-plugin-slurm=={slurm_executor.VERSION}\n" in (ROOT / "requirements.txt").read_text()


def test_the_poll_interval_is_a_third_of_what_slurm_remembers():
    check_poll_interval(60, 20)
    with pytest.raises(WorkflowError):
        check_poll_interval(59, 20)


def test_what_is_being_submitted_is_cancelled_too(executor, slurm):
    """sbatch has accepted a job that Snakemake does not know yet."""
    folder = slurm(scancel='echo "$@" >> "$(dirname "$0")/cancelled"')
    submitted = []
    executor._job_submission_executor.submit(submitted.append, 1)
    executor.cancel_jobs([SubmittedJobInfo(None, "5", {})])
    assert submitted == [1]
    assert (folder / "cancelled").read_text() == f"--name {executor.run_uuid}\n"
    with pytest.raises(RuntimeError):
        executor._job_submission_executor.submit(submitted.append, 2)


def test_a_failing_scancel_is_retried_and_reported(executor, slurm, caplog):
    folder = slurm(scancel='echo >> "$(dirname "$0")/tried"; echo no controller >&2; exit 1')
    executor.cancel_jobs([])
    assert (folder / "tried").read_text() == "\n" * slurm_executor.ATTEMPTS
    assert f"scancel --name {executor.run_uuid}" in caplog.text
    assert "no controller" in caplog.text


def test_snakemake_takes_the_guarded_executor():
    slurm_executor.install()
    assert ExecutorPluginRegistry().get_plugin("slurm").executor is GuardedExecutor
