"""Generation in shards, and several answers for each prompt."""

import json

import pytest
from running import TEACHER, planned, read_lines

RAW = "artifacts/distill_data/raw"
TARGET = f"{RAW}/teacher_outputs_banks.jsonl"
GREEDY = {"generation": {"max_new_tokens": 24, "temperature": 0.0, "batch_size": 8}}
SAMPLED = {"generation": {"max_new_tokens": 24, "temperature": 1.0, "batch_size": 8}, "samples": 2}


def run_both(fresh, folder, teacher, shards):
    """Generate banks' answers by one job and in shards, each with a cache of its own."""
    directories = []
    for name, count in (("one", 1), ("several", shards)):
        directory = fresh.copy(folder / name)
        directory.configure(directory.config | {"teacher": TEACHER | teacher | {"shards": count}})
        directory.run(TARGET)
        directories.append(directory)
    return directories


@pytest.fixture(scope="module")
def sampled(fresh, tmp_path_factory):
    """Two answers for each prompt, by one job and in two shards."""
    return run_both(fresh, tmp_path_factory.mktemp("sampled"), SAMPLED, shards=2)


def assert_same_answers(one, several, samples, shards):
    assert (one / TARGET).read_bytes() == (several / TARGET).read_bytes()
    assert len(read_lines(several / TARGET)) == 33 * samples

    assert len(list(several.path.glob("artifacts/cache/teacher/*/*.jsonl"))) == shards
    stats, other = (json.loads((run / TARGET.replace(".jsonl", ".stats.json")).read_text()) for run in (one, several))
    assert stats.keys() == other.keys()
    measured = {"seconds", "tokens_per_second", "peak_memory_mb", "peak_reserved_mb"}
    assert all(stats[name] == other[name] for name in stats.keys() - measured)
    assert (other["prompts"], other["from_cache"], other["generated"]) == (33, 0, 33 * samples)
    assert not (several / f"{RAW}/shards").exists()


@pytest.mark.slow
def test_two_shards_write_what_one_job_writes(sampled):
    assert_same_answers(*sampled, samples=2, shards=2)


@pytest.mark.slow
def test_three_greedy_shards_write_what_one_job_writes(fresh, tmp_path):
    assert_same_answers(*run_both(fresh, tmp_path, GREEDY, shards=3), samples=1, shards=3)


@pytest.mark.slow
def test_a_student_trains_on_all_answers_and_predicts_each_prompt_once(sampled):
    directory = sampled[1]
    predictions = "output/evaluation/student_seqkd/banks.predictions.jsonl"
    output = directory.run(predictions)
    assert "rule generate_answers" not in output  # the shards' temporary files are not needed again
    folder = directory / "artifacts/distill_data/processed/banks"
    splits = {name: read_lines(folder / f"{name}.jsonl") for name in ("train", "val", "test")}
    prompts = {name: {record["uid"] for record in records} for name, records in splits.items()}
    assert sum(map(len, prompts.values())) == 33 == len(set.union(*prompts.values()))
    assert len(splits["train"]) == 2 * len(prompts["train"])
    assert all(len(splits[name]) == len(prompts[name]) for name in ("val", "test"))
    log = (directory / "logs/train_student/student_seqkd/banks.log").read_text()
    assert f"{len(splits['train'])} training and {len(splits['val'])} validation records" in log
    assert len(read_lines(directory / predictions)) == len(splits["test"])


@pytest.mark.slow
def test_another_number_of_shards_on_a_finished_run(copy):
    """Once the answers are gathered again, they are unchanged, so later steps do not rerun."""
    copy.configure(copy.config | {"teacher": copy.config["teacher"] | {"shards": 2}})
    assert {"gather_answers", "split_answers", "train_student"} <= {rule for rule, _ in copy.planned()}
    copy.run("--until", "gather_answers")
    stats = json.loads((copy / TARGET.replace(".jsonl", ".stats.json")).read_text())
    assert (stats["prompts"], stats["from_cache"], stats["generated"]) == (33, 33, 0)
    assert copy.planned() == []

    copy.configure(copy.config | {"teacher": copy.config["teacher"] | {"shards": 1}})
    assert planned(copy.run("-n", "--until", "generate_answers")) == [
        ("generate_answers", "banks"),
        ("generate_answers", "households"),
    ]
