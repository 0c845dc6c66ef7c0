"""Jobs that reach their time limits on a cluster: they are requeued, resume, and give up after some restarts."""

import re

import pytest
from running import SCRIPTS
from slurm_testbed import wait_until


@pytest.fixture(scope="module")
def limited(testbed, tmp_path_factory):
    """Jobs that run into their time limits: (number, output file) by name."""
    folder = tmp_path_factory.mktemp("limited")
    script = folder / "job.sh"
    script.write_text(f"set -euo pipefail; source {SCRIPTS}/requeue.sh; echo start $SLURM_RESTART_COUNT; sleep 600\n")
    given = {
        # Requeued half a minute before its limit, and the second time failed.
        "watched": (["--time=1"], "STILLHOUSE_MOST_RESTARTS=1"),
        # Slurm signals it a minute before its limit, long before the shell would.
        "told": (["--time=2", "--signal=TERM@60"], "STILLHOUSE_MOST_RESTARTS=1 STILLHOUSE_WARN_SECONDS=1"),
    }
    jobs = {}
    for name, (options, variables) in given.items():
        command = f"{variables} SLURM_RESTART_COUNT=${{SLURM_RESTART_COUNT:-0}} srun bash {script}"
        options += ["--parsable", "--requeue", "--open-mode=append", f"--output={folder / name}"]
        jobs[name] = testbed.run("sbatch", *options, f"--wrap={command}").strip(), folder / name
    return jobs


@pytest.mark.parametrize("name", ["watched", "told"])
def test_a_job_near_its_time_limit_is_requeued_a_limited_number_of_times(testbed, limited, name):
    job, log = limited[name]

    def describe():
        states = [testbed.run("scontrol", "show", kind, check=False) for kind in ("jobs", "nodes")]
        return "\n".join([log.read_text() if log.exists() else "no output", *states])

    def has_given_up():
        return log.exists() and "longer runtime" in log.read_text()

    wait_until(has_given_up, why=f"for job {job} to give up", describe=describe)
    wait_until(lambda: [one["JobState"] for one in testbed.ended() if one["JobId"] == job][-1:] == ["FAILED"])
    text = log.read_text()
    assert re.findall(r"^start (\d)$", text, flags=re.MULTILINE) == ["0", "1"]
    assert text.count(f"job {job} is requeued") == 1
    assert "Slurm has restarted this job 1 times: it needs a longer runtime" in text
