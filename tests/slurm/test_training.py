"""Trainings on two nodes give one process's result, also if they are stopped, requeued or lose a node."""

import shlex
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import CONFIG, ONE_THREAD, SCRIPTS, Directory, make_models, make_records, merge, read_lines
from safetensors.torch import load_file
from slurm_testbed import wait_until
from training_runs import assert_same_weights

TRAIN = {"nodes": 2, "epochs": 80, "logging_steps": 1, "save_steps": 10}
STUDENTS = {
    name: merge(CONFIG["students"]["student_kd"], {"train": TRAIN | {"strategy": strategy}})
    for name, strategy in (("copies", "ddp"), ("shares", "fsdp"))
}
# With `device: auto` the jobs request GPUs; each node has one in name only.
SETTINGS = {"categories": ["banks"], "device": "auto", "teacher": CONFIG["teacher"] | {"adapter": None}}


def targets():
    return [f"output/{name}/banks/model.safetensors" for name in STUDENTS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, testbed):
    """A directory with the splits, so that only the trainings are left to run."""
    path = tmp_path_factory.mktemp("prepared")
    make_records(path, grpo=20, sft=20)
    make_models(path)
    directory = Directory(path, CONFIG | SETTINGS | {"students": STUDENTS})
    directory.run("artifacts/distill_data/processed/banks/train.jsonl")
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory, prepared):
    """Function that waits for the same trainings by one process each and returns their directory.

    They run in parallel with the tests. Without Slurm a training has one node, whatever `nodes` says.
    """
    directory = prepared.copy(tmp_path_factory.mktemp("alone") / "copy")
    training = ThreadPoolExecutor().submit(directory.run, *targets())

    def alone():
        training.result()
        for name in STUDENTS:
            assert "not a Slurm job" in (directory / f"logs/train_student/{name}/banks.log").read_text()
        return directory

    return alone


# Of a validation; with fsdp there are no answers.
ANSWERS = ("val_truncated", "val_repetition", "reference_truncated", "reference_repetition", "runs_away")


def assert_same_run(folder, other):
    """Compare loss curves and float32 weights."""
    lines, wanted = (read_lines(path / "training_log.jsonl") for path in (folder, other))
    assert len(wanted) == 240  # one for each step, and one for each epoch's validation
    for line, one in zip(lines, wanted, strict=True):
        pace = ("tokens_per_second", "memory_mb", "reserved_mb", "warnings", *ANSWERS)
        assert {k: v for k, v in line.items() if k not in pace} == pytest.approx(
            {k: v for k, v in one.items() if k not in pace}, rel=1e-5
        )
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, other))
    assert_same_weights(weights, expected, rtol=1e-5, atol=1e-6)


def find_checkpoint(directory, name):
    """Return the step of a student's last complete checkpoint, or 0."""
    whole = directory.path.glob(f"artifacts/checkpoints/{name}/banks/*/checkpoint-*/trainer_state.json")
    return max((int(path.parent.name.rsplit("-", 1)[-1]) for path in whole), default=0)


def find_job(testbed, name):
    """Return the Slurm job of a student's running training, or None."""
    running = [row for row in testbed.queue("%T %i %k") if row[0] == "RUNNING"]
    return next((job for _, job, comment in running if comment.endswith(f"_{name}_banks")), None)


def find_undisturbed(testbed, disturbed):
    """Return (student, job) of a running training that has not been disturbed yet, or None."""
    jobs = {name: find_job(testbed, name) for name in STUDENTS if name not in disturbed}
    return next(((name, job) for name, job in jobs.items() if job), None)


def requeue(testbed, job):
    testbed.run("scontrol", "requeue", job)


def lose_a_node(testbed, job):
    """Take a node down until the job is back in the queue; the job restarts when both nodes are up."""
    testbed.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_until(lambda: testbed.state(job) == "PENDING", why=f"for job {job} to be queued again")
    # Not checked with sinfo, which may show the node as mixed while CPUs of the job are still counted.
    testbed.run("scontrol", "update", "nodename=n2", "state=resume")


DISTURB = {"copies": requeue, "shares": lose_a_node}


def test_two_nodes_give_the_result_of_one_process_through_a_requeue_and_a_lost_node(testbed, prepared, alone, tmp_path):
    directory = prepared.copy(tmp_path / "run")
    run = testbed.start(directory, *targets(), *ONE_THREAD)
    disturbed: dict[str, tuple[str, str]] = {}
    while len(disturbed) < len(STUDENTS):  # one at a time, since each takes the GPUs of both nodes
        name, job = wait_until(lambda: find_undisturbed(testbed, disturbed), why="for a training")
        wait_until(lambda name=name: find_checkpoint(directory, name), why=f"for a checkpoint of {name}")
        disturbed[name] = job, testbed.run("scontrol", "show", "job", "--details", job)
        DISTURB[name](testbed, job)
    code, output = run.wait()
    assert code == 0, output
    ended = {job["JobId"]: job["JobState"] for job in testbed.ended()}
    for name, (job, shown) in disturbed.items():
        text = (directory / f"logs/train_student/{name}/banks.log").read_text()
        assert f"resuming from artifacts/checkpoints/{name}" in text
        assert not (directory / f"artifacts/checkpoints/{name}/banks").exists()
        assert "Nodes=n[1-2]" in shown
        assert "GRES=gpu:1" in shown  # of each node
        assert ended[job] == "COMPLETED"
        assert_same_run(directory / f"output/{name}/banks", alone() / f"output/{name}/banks")
    assert_same_run(directory / "output/copies/banks", directory / "output/shares/banks")


def test_a_signal_saves_one_checkpoint_and_the_requeued_job_resumes(testbed, prepared, alone, tmp_path):
    """Slurm sends such a signal to a job's steps near its time limit."""
    directory = prepared.copy(tmp_path / "run")
    plan = directory.run("--dry-run", targets()[0])
    (line,) = [line for line in plan.splitlines() if "run_on_nodes.py" in line and line.startswith("Shell command")]
    script = line.removeprefix("Shell command: ").split(" > ")[0]
    assert str(SCRIPTS / "run_on_nodes.py") in script
    job = testbed.run(
        *("sbatch", "--parsable", "--nodes=2", "--ntasks=2", "--mem=2000", "--open-mode=append", "--output=job.log"),
        *(
            "--chdir",
            directory.path,
            "--wrap",
            f"OMP_NUM_THREADS=1 {shlex.quote(sys.executable)} {script.removeprefix('python ')}",
        ),
    ).strip()
    wait_until(lambda: find_checkpoint(directory, "copies"), why="for a checkpoint")
    testbed.run("pkill", "--oldest", "-USR1", "-x", "srun", box="n1")  # as requeue.sh does
    wait_until(lambda: testbed.state(job) == "FAILED", why="for the training to end")
    text = (directory / "job.log").read_text()
    assert [end["ExitCode"] for end in testbed.ended() if end["JobId"] == job] == ["143:0"], text
    assert text.count("stopped by a signal") == 2
    stopped = find_checkpoint(directory, "copies")
    assert f"saving the checkpoint of step {stopped}" in text
    assert not (directory / "output/copies").exists()
    testbed.run("scontrol", "requeue", job)
    wait_until(lambda: testbed.state(job) == "COMPLETED", why="for the training to go on and end")
    text = (directory / "job.log").read_text()
    assert f"checkpoint-{stopped}" in text.split("resuming from ")[1].splitlines()[0]
    assert_same_run(directory / "output/copies/banks", alone() / "output/copies/banks")
