"""A training that is stopped in every way that a cluster knows goes on where it was."""

import re
from concurrent.futures import ThreadPoolExecutor

from running import ONE_THREAD
from slurm_testbed import submitted, wait_until

STUDENT = "output/student_kd/banks/model.safetensors"


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
