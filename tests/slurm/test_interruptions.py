"""Faults on a cluster: no accounting, broken records, time limits, cancelled runs, nodes that go down."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import ONE_THREAD, SCRIPTS, read_lines
from slurm_testbed import submitted, wait_until

PROMPTS = "artifacts/distill_data/raw/{}_teacher_prompts_base.jsonl"
ANSWERS = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"
STUDENT = "output/student_kd/banks/model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def limited(testbed, tmp_path_factory):
    """Jobs that run into their time limits, started early: (number, output file) by name."""
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
        # The tests take only the other node down.
        options += ["--parsable", "--requeue", "--nodelist=n2", "--open-mode=append", f"--output={folder / name}"]
        jobs[name] = testbed.run("sbatch", *options, f"--wrap={command}").strip(), folder / name
    return jobs


def test_the_unmodified_profile_works_without_accounting(testbed, prepared, tmp_path):
    """The executor's default, sacct, finds no job without accounting, so that a run would never end."""
    assert "accounting storage is disabled" in testbed.run("sacct", check=False)
    directory = prepared.copy(tmp_path / "run")
    code, output = testbed.start(directory, PROMPTS.format("banks"), overrides=()).wait()
    assert code == 0, output
    assert (directory / PROMPTS.format("banks")).exists()


def test_a_broken_record_fails_its_category_once(testbed, prepared, tmp_path):
    directory = prepared.copy(tmp_path / "run")
    path = directory / "artifacts/sft/sft_train_banks.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    code, output = testbed.start(directory, *map(PROMPTS.format, ("banks", "households"))).wait()
    assert code != 0
    assert re.search(r"sft_train_banks\.jsonl:41: ", output)
    assert sorted(submitted(output).values()) == ["group_prepare_banks", "group_prepare_households"]
    states = {submitted(output).get(job["JobId"]): job["JobState"] for job in testbed.ended()}
    assert states["group_prepare_banks"] == "FAILED"
    assert states["group_prepare_households"] == "COMPLETED"
    assert (directory / PROMPTS.format("households")).exists()


def test_status_shows_pending_jobs_and_ctrl_c_cancels_them(testbed, prepared, tmp_path):
    directory = prepared.copy(tmp_path / "run")
    testbed.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        run = testbed.start(directory, PROMPTS.format("banks"))
        wait_until(lambda: waiting_rules(testbed), why="for a job in the queue")
        arguments = ["--profile", "slurm", "--configfile", directory.configfile, "--directory", directory.path]
        table = testbed.run("python", SCRIPTS / "status.py", *arguments)
        run.interrupt()
        code, output = run.wait()
    finally:
        testbed.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert re.search(r"^banks +to do +to do ", table, flags=re.MULTILINE)
    assert re.search(r"Slurm: 1 pending\n +\d+ +pending +PartitionDown .* prepare_banks_make_prompts_mix_rec", table)
    assert code != 0, output
    assert not waiting_rules(testbed)


def test_a_node_that_goes_down_during_sharded_generation_loses_no_answer(testbed, prepared, tmp_path):
    directory, undisturbed = (prepared.copy(tmp_path / name) for name in ("run", "undisturbed"))
    beside = ThreadPoolExecutor().submit(undisturbed.run, ANSWERS)
    directory.configure(directory.config | {"teacher": directory.config["teacher"] | {"shards": 4}})
    run = testbed.start(directory, ANSWERS, *ONE_THREAD)
    on_first = ["n1", "generate_answers"]
    wait_until(lambda: on_first in running_rules(testbed), why="for a shard on n1")
    testbed.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    wait_until(lambda: on_first not in running_rules(testbed), why="for n1 to be empty")
    testbed.run("scontrol", "update", "NodeName=n1", "State=RESUME")
    code, output = run.wait()
    assert code == 0, output
    assert list(submitted(output).values()).count("generate_answers") == 4  # Slurm restarts the shard, not Snakemake
    beside.result()
    assert read_lines(directory / ANSWERS) == read_lines(undisturbed / ANSWERS)


def running_rules(testbed):
    """Return [node, rule] of each running job."""
    rows = [row for row in testbed.queue("%T %N %k") if row[0] == "RUNNING"]
    return [[node, comment.removeprefix("rule_").split("_wildcards_")[0]] for _, node, comment in rows]


def waiting_rules(testbed):
    """Return the comments of the pending jobs that Snakemake submitted."""
    return [row[1] for row in testbed.queue("%T %k") if row[0] == "PENDING" and row[1].startswith("rule_")]


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
