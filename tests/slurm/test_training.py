"""Trainings on two nodes: what one process has, also where they are stopped, requeued and lose a node."""

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
# device auto: the jobs ask for GPUs, of which the nodes have one each in name.
SETTINGS = {"categories": ["banks"], "device": "auto", "teacher": CONFIG["teacher"] | {"adapter": None}}


def targets():
    return [f"output/{name}/banks/model.safetensors" for name in STUDENTS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, testbed):
    """A directory with the splits; all that is left is to train."""
    path = tmp_path_factory.mktemp("prepared")
    make_records(path, grpo=20, sft=20)
    make_models(path)
    directory = Directory(path, CONFIG | SETTINGS | {"students": STUDENTS})
    directory.run("artifacts/distill_data/processed/banks/train.jsonl")
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory, prepared):
    """The same, trained by one process each, since without Slurm `nodes` is one; beside the tests, until called."""
    directory = prepared.copy(tmp_path_factory.mktemp("alone") / "copy")
    training = ThreadPoolExecutor().submit(directory.run, *targets())

    def alone():
        training.result()
        for name in STUDENTS:
            assert "no Slurm job" in (directory / f"logs/train_student/{name}/banks.log").read_text()
        return directory

    return alone


def assert_same_run(folder, other):
    """Loss curve and weights, float32."""
    lines, wanted = (read_lines(path / "training_log.jsonl") for path in (folder, other))
    assert len(wanted) == 240  # a line a step, and a validation an epoch
    for line, one in zip(lines, wanted, strict=True):
        pace = ("tokens_per_second", "memory_mb")
        assert {k: v for k, v in line.items() if k not in pace} == pytest.approx(
            {k: v for k, v in one.items() if k not in pace}, rel=1e-5
        )
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, other))
    assert_same_weights(weights, expected, rtol=1e-5, atol=1e-6)


def find_checkpoint(directory, name):
    """The step of a student's last whole checkpoint; 0 where there is none."""
    whole = directory.path.glob(f"artifacts/checkpoints/{name}/banks/*/checkpoint-*/trainer_state.json")
    return max((int(path.parent.name.rsplit("-", 1)[-1]) for path in whole), default=0)


def find_job(testbed, name):
    """Number of a student's running training."""
    running = [row for row in testbed.queue("%T %i %k") if row[0] == "RUNNING"]
    return next((job for _, job, comment in running if comment.endswith(f"_{name}_banks")), None)


def find_undisturbed(testbed, disturbed):
    """A student that trains and has not been disturbed yet, and its job."""
    jobs = {name: find_job(testbed, name) for name in STUDENTS if name not in disturbed}
    return next(((name, job) for name, job in jobs.items() if job), None)


def requeue(testbed, job):
    testbed.run("scontrol", "requeue", job)


def lose_a_node(testbed, job):
    """For a while: the job is put back into the queue, and runs once both nodes are there."""
    testbed.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_until(lambda: testbed.state(job) == "PENDING", why=f"for job {job} to be queued again")
    # sinfo is not asked whether it is down: it may show a node as mixed as long as it counts processors of the job.
    testbed.run("scontrol", "update", "nodename=n2", "state=resume")


DISTURB = {"copies": requeue, "shares": lose_a_node}


def test_two_nodes_give_what_one_process_does_through_a_requeue_and_a_node_that_is_down(
    testbed, prepared, alone, tmp_path
):
    directory = prepared.copy(tmp_path / "run")
    run = testbed.start(directory, *targets(), *ONE_THREAD)
    disturbed: dict[str, tuple[str, str]] = {}
    while len(disturbed) < len(STUDENTS):  # one runs at a time: each takes the GPUs of both nodes
        name, job = wait_until(lambda: find_undisturbed(testbed, disturbed), seconds=240, why="for a training")
        wait_until(lambda name=name: find_checkpoint(directory, name), seconds=240, why=f"for a checkpoint of {name}")
        disturbed[name] = job, testbed.run("scontrol", "show", "job", "--details", job)
        DISTURB[name](testbed, job)
    code, output = run.wait(timeout=400)
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


def test_a_signal_saves_one_checkpoint_and_a_requeued_job_goes_on(testbed, prepared, alone, tmp_path):
    """As Slurm sends it to a job's steps near its time limit."""
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
    wait_until(lambda: find_checkpoint(directory, "copies"), seconds=240, why="for a checkpoint")
    testbed.run("pkill", "--oldest", "-USR1", "-x", "srun", box="n1")  # as the shell around the command does
    wait_until(lambda: testbed.state(job) == "FAILED", why="for the training to end")
    text = (directory / "job.log").read_text()
    assert [end["ExitCode"] for end in testbed.ended() if end["JobId"] == job] == ["143:0"], text
    assert text.count("stopped by a signal") == 2
    stopped = find_checkpoint(directory, "copies")
    assert f"saving the checkpoint of step {stopped}" in text
    assert not (directory / "output/copies").exists()
    testbed.run("scontrol", "requeue", job)
    wait_until(lambda: testbed.state(job) == "COMPLETED", seconds=240, why="for the training to go on and end")
    text = (directory / "job.log").read_text()
    assert f"checkpoint-{stopped}" in text.split("resuming from ")[1].splitlines()[0]
    assert_same_run(directory / "output/copies/banks", alone() / "output/copies/banks")
