"""Shards and several answers of a prompt, as a user has them made."""

import json

import pytest
from running import TEACHER, planned, read_lines

RAW = "artifacts/distill_data/raw"
TARGET = f"{RAW}/teacher_outputs_banks.jsonl"
GREEDY = {"generation": {"max_new_tokens": 24, "temperature": 0.0, "batch_size": 8}}
SAMPLED = {"generation": {"max_new_tokens": 24, "temperature": 1.0, "batch_size": 8}, "samples": 2}


def run_shards(fresh, path, shards, teacher):
    directory = fresh.copy(path)
    directory.configure(directory.config | {"teacher": TEACHER | teacher | {"shards": shards}})
    directory.run(TARGET)
    return directory


@pytest.fixture(scope="module", params=[(GREEDY, 1), (SAMPLED, 2)], ids=["greedy", "sampled"])
def runs(request, fresh, tmp_path_factory):
    """Answers by one job and by three shards, each with a cache of its own, and how many each prompt has."""
    teacher, samples = request.param
    path = tmp_path_factory.mktemp("shards")
    return run_shards(fresh, path / "one", 1, teacher), run_shards(fresh, path / "three", 3, teacher), samples


def test_three_shards_write_what_one_writes(runs):
    one, three, samples = runs
    assert (one / TARGET).read_bytes() == (three / TARGET).read_bytes()
    assert len(read_lines(three / TARGET)) == 33 * samples

    assert len(list(three.path.glob("artifacts/cache/teacher/*/*.jsonl"))) == 3
    stats, other = (json.loads((run / TARGET.replace(".jsonl", ".stats.json")).read_text()) for run in (one, three))
    assert stats.keys() == other.keys()
    measured = {"seconds", "tokens_per_second", "peak_memory_mb"}
    assert all(stats[name] == other[name] for name in stats.keys() - measured)
    assert (other["prompts"], other["from_cache"], other["generated"]) == (33, 0, 33 * samples)
    assert not (three / f"{RAW}/shards").exists()


@pytest.mark.parametrize("runs", [(SAMPLED, 2)], indirect=True, ids=["sampled"])
def test_a_student_trains_on_all_answers_and_is_asked_each_prompt_once(runs):
    _, directory, _ = runs
    predictions = "output/evaluation/student_seqkd/banks.predictions.jsonl"
    output = directory.run(predictions)
    assert "rule generate_answers" not in output  # what the shards wrote is gone, and not wanted again
    folder = directory / "artifacts/distill_data/processed/banks"
    splits = {name: read_lines(folder / f"{name}.jsonl") for name in ("train", "val", "test")}
    prompts = {name: {record["uid"] for record in records} for name, records in splits.items()}
    assert sum(map(len, prompts.values())) == 33 == len(set.union(*prompts.values()))
    assert len(splits["train"]) == 2 * len(prompts["train"])
    assert all(len(splits[name]) == len(prompts[name]) for name in ("val", "test"))
    log = (directory / "logs/train_student/student_seqkd/banks.log").read_text()
    assert f"{len(splits['train'])} training and {len(splits['val'])} validation records" in log
    assert len(read_lines(directory / predictions)) == len(splits["test"])


def test_shards_changed_on_a_finished_run(finished, tmp_path):
    """Gathered on their own first, the same answers leave everything after them as it is."""
    copy = finished.copy(tmp_path / "copy")
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
