"""Faults on a cluster: no accounting, broken records, pending jobs, nodes that go down."""

import re
from concurrent.futures import ThreadPoolExecutor

from running import ONE_THREAD, SCRIPTS, read_lines
from slurm_testbed import submitted, wait_until

PROMPTS = "artifacts/distill_data/raw/{}_teacher_prompts_base.jsonl"
ANSWERS = "artifacts/distill_data/raw/teacher_outputs_banks.jsonl"


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
