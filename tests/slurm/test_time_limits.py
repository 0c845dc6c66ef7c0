"""Jobs that reach their time limits on a cluster: they are requeued, resume, and give up after some restarts."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import ONE_THREAD, SCRIPTS
from slurm_testbed import submitted, wait_until

STUDENT = "output/student_kd/banks/model.safetensors"


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


def test_a_training_resumes_after_its_time_limit_a_cancelled_run_and_a_lost_node(testbed, prepared, tmp_path):
    """Stopped three times, it ends with the weights of an undisturbed training, which runs in parallel."""
    directory = prepared.copy(tmp_path / "run")
    train = directory.config["students"]["student_kd"]["train"] | {"epochs": 1200, "save_steps": 10000}
    student = directory.config["students"]["student_kd"] | {"train": train}
    directory.configure(directory.config | {"students": {"student_kd": student}})
    undisturbed = directory.copy(tmp_path / "undisturbed")
    beside = ThreadPoolExecutor().submit(undisturbed.run, STUDENT)

    run = testbed.start(directory, STUDENT, *ONE_THREAD, "--set-resources", "train_student:runtime=2")
    first = wait_for_steps(directory, after=0)
    (job,) = [number for number, rule in testbed.queue("%i %k") if "train_student" in rule]
    wait_until(lambda: testbed.restarts(job) == 1, why="for the job's time to be half over")
    second = wait_for_steps(directory, after=first)
    testbed.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    run.interrupt()
    assert run.wait()[0] != 0
    wait_until(lambda: job not in [row[0] for row in testbed.queue()], why="for the job to be cancelled")

    run = testbed.start(directory, STUDENT, *ONE_THREAD)
    third = wait_for_steps(directory, after=second)
    ((node,),) = [row for row in testbed.queue("%N") if row]
    testbed.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        wait_for_steps(directory, after=third)
    finally:
        testbed.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    code, output = run.wait()
    assert code == 0, output
    assert list(submitted(output).values()) == ["train_student"]
    beside.result()
    assert (directory / STUDENT).read_bytes() == (undisturbed / STUDENT).read_bytes()


def wait_for_steps(directory, after):
    """Wait until a training has resumed from step `after` or later (0: started) and done 5 steps; return its step."""
    log = directory / "logs/train_student/student_kd/banks.log"

    def step():
        text = log.read_text() if log.exists() else ""
        begun = re.search(r"resuming from \S+/checkpoint-(\d+)", text)
        begun = int(begun[1]) if begun else 0
        steps = [int(number) for number in re.findall(r" step (\d+)/\d+: ", text)]
        return steps[-1] if steps and begun >= after and steps[-1] >= begun + 5 else None

    wait_until(lambda: step() is not None, why=f"for a training to go on after step {after}")
    return step()
