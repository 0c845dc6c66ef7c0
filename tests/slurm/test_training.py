"""Trainings on two nodes: what one process has, also where they are stopped, requeued and lose a node."""

import shlex
import subprocess
import sys

import pytest
from running import (
    CONFIG,
    ONE_THREAD,
    ROOT,
    SCRIPTS,
    Directory,
    environment,
    make_models,
    make_records,
    merge,
    read_lines,
)
from safetensors.torch import load_file
from training_runs import assert_same_weights

TRAIN = {"nodes": 2, "epochs": 80, "logging_steps": 1, "save_steps": 10}
STUDENTS = {
    name: merge(CONFIG["students"]["student_kd"], {"train": TRAIN | {"strategy": strategy}})
    for name, strategy in (("copies", "ddp"), ("shares", "fsdp"))
}
# device auto: the jobs ask for GPUs, of which the nodes have one each in name.
SETTINGS = {"categories": ["banks"], "device": "auto", "teacher": CONFIG["teacher"] | {"adapter": None}}
SLURM = ["--executor", "slurm", "--jobs", "4", "--slurm-status-command", "squeue", "--slurm-requeue"]
SLURM += ["--slurm-init-seconds-before-status-checks", "9", "--latency-wait", "30", "--default-resources"]
SLURM += ["slurm_account=none", "slurm_partition=main", "slurm_extra='--signal=TERM@60'"]


def targets():
    return [f"output/{name}/banks/model.safetensors" for name in STUDENTS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, cluster):
    """A directory with the splits; all that is left is to train."""
    path = tmp_path_factory.mktemp("prepared")
    make_records(path, grpo=20, sft=20)
    make_models(path)
    directory = Directory(path, CONFIG | SETTINGS | {"students": STUDENTS})
    directory.run("artifacts/distill_data/processed/banks/train.jsonl")
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory, prepared):
    """The same, trained by one process each: without Slurm `nodes` is one."""
    directory = prepared.copy(tmp_path_factory.mktemp("alone") / "copy")
    directory.run(*targets())
    for name in STUDENTS:
        assert "no Slurm job" in (directory / f"logs/train_student/{name}/banks.log").read_text()
    return directory


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


def find_checkpoint(directory, name, after=0):
    """The last whole checkpoint of a student that is newer than a step."""
    whole = directory.path.glob(f"artifacts/checkpoints/{name}/banks/*/checkpoint-*/trainer_state.json")
    steps = [int(path.parent.name.rsplit("-", 1)[-1]) for path in whole]
    return max((step for step in steps if step > after), default=0)


def find_job(cluster, name):
    """Number of a student's running training."""
    lines = cluster.run("squeue", "--noheader", "--states=running", "--format=%i %k").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f"_{name}_banks")), None)


def find_undisturbed(cluster, disturbed):
    """A student that trains and has not been disturbed yet, and its job."""
    jobs = {name: find_job(cluster, name) for name in STUDENTS if name not in disturbed}
    return next(((name, job) for name, job in jobs.items() if job), None)


def requeue(cluster, job):
    cluster.run("scontrol", "requeue", job)


def lose_a_node(cluster, job):
    """For a while: the job is put back into the queue, and runs once both nodes are there."""
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    cluster.wait(lambda: cluster.state(job) == "PENDING")
    cluster.wait(lambda: is_back(cluster))


def is_back(cluster):
    """Whether n2 takes jobs; it is asked to where it is still down."""
    state = cluster.run("sinfo", "--noheader", "--nodes=n2", "--format=%T")
    if state.startswith("down"):
        cluster.run("scontrol", "update", "nodename=n2", "state=resume")
    return state in ("idle", "mixed", "allocated")


DISTURB = {"copies": requeue, "shares": lose_a_node}


def test_two_nodes_give_what_one_process_does_through_a_requeue_and_a_node_that_is_down(
    cluster, prepared, alone, tmp_path
):
    directory = prepared.copy(tmp_path / "run")
    command = ["snakemake", *targets(), *SLURM, *ONE_THREAD, "--set-resources", "train_student:mem_mb=2000"]
    command += ["--max-checksum-file-size", "10000000000000", "--show-failed-logs", "--keep-going"]
    command += ["--configfile", directory.configfile, "--directory", directory.path]
    log = tmp_path / "snakemake.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            cluster.command(*command), cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            disturbed: dict[str, tuple[str, str]] = {}
            while len(disturbed) < len(STUDENTS):  # one runs at a time: each takes the GPUs of both nodes
                name, job = cluster.wait(lambda: is_back(cluster) and find_undisturbed(cluster, disturbed))
                cluster.wait(lambda name=name: find_checkpoint(directory, name))
                disturbed[name] = job, cluster.run("scontrol", "show", "job", "--details", job)
                DISTURB[name](cluster, job)
            cluster.wait(lambda: is_back(cluster) and process.poll() is not None, seconds=400)
            assert process.returncode == 0, log.read_text()
        finally:
            process.terminate()
    for name, (job, shown) in disturbed.items():
        text = (directory / f"logs/train_student/{name}/banks.log").read_text()
        assert f"going on from artifacts/checkpoints/{name}" in text
        assert not (directory / f"artifacts/checkpoints/{name}/banks").exists()
        assert "Nodes=n[1-2]" in shown
        assert "GRES=gpu:1" in shown  # of each node
        assert "JobState=COMPLETED" in cluster.ended(job)
        assert_same_run(directory / f"output/{name}/banks", alone / f"output/{name}/banks")
    assert_same_run(directory / "output/copies/banks", directory / "output/shares/banks")


def test_a_signal_saves_one_checkpoint_and_a_requeued_job_goes_on(cluster, prepared, alone, tmp_path):
    """As Slurm sends it to a job's steps near its time limit."""
    directory = prepared.copy(tmp_path / "run")
    plan = directory.run("--dry-run", targets()[0])
    (line,) = [line for line in plan.splitlines() if "run_on_nodes.py" in line and line.startswith("Shell command")]
    script = line.removeprefix("Shell command: ").split(" > ")[0]
    assert str(SCRIPTS / "run_on_nodes.py") in script
    job = cluster.run(
        *("sbatch", "--parsable", "--nodes=2", "--ntasks=2", "--mem=2000", "--open-mode=append", "--output=job.log"),
        *(
            "--chdir",
            directory.path,
            "--wrap",
            f"OMP_NUM_THREADS=1 {shlex.quote(sys.executable)} {script.removeprefix('python ')}",
        ),
    )
    cluster.wait(lambda: find_checkpoint(directory, "copies"))
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(lambda: cluster.state(job) == "FAILED")
    text = (directory / "job.log").read_text()
    assert "ExitCode=143:0" in cluster.ended(job), text
    assert text.count("stopped by a signal") == 2
    stopped = find_checkpoint(directory, "copies")
    assert f"saving the checkpoint of step {stopped}" in text
    assert not (directory / "output/copies").exists()
    cluster.run("scontrol", "requeue", job)
    cluster.wait(lambda: cluster.state(job) == "COMPLETED")
    text = (directory / "job.log").read_text()
    assert f"checkpoint-{stopped}" in text.split("going on from ")[1].splitlines()[0]
    assert_same_run(directory / "output/copies/banks", alone / "output/copies/banks")
