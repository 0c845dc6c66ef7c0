"""What a working directory holds by step, and what making it again took."""

import re

import pytest

import disk
from distill.plan.disk_usage import measure_usage, read_seconds
from distill.plan.schema import check_config

FILES = {
    "models/hf/owner/name/model.safetensors": 400,
    "artifacts/distill_data/raw/teacher_outputs_banks.jsonl": 30,
    "artifacts/distill_data/processed/banks/train.jsonl": 20,
    "artifacts/distill_data/teacher_signal/banks/topk_64_t2/index.json": 10,
    "artifacts/cache/examples/abc/examples.arrow": 80,
    "artifacts/checkpoints/one/banks/abc/checkpoint-2/model.safetensors": 200,
    "artifacts/predicted/one/banks.predictions/abc.jsonl": 15,
    "output/one/banks/model.safetensors": 100,
    "output/two/all/model.safetensors": 100,
    "output/evaluation/one/banks.predictions.jsonl": 40,
    "output/export/one/banks/nf4/model.safetensors": 50,
    "output/report/metrics.csv": 5,
}
KIB = 1024


@pytest.fixture
def directory(tmp_path):
    """A run with files of known sizes in KiB, a signal on another disk, and a cache elsewhere."""
    folder = tmp_path / "run"
    disk, cache = tmp_path / "disk/banks/topk_64_t2/data", tmp_path / "cache"
    stored = {disk / "abc/00000.safetensors": 300, cache / "f" / "a.jsonl": 60}
    for path, size in {folder / name: size for name, size in FILES.items()}.items() | stored.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size * KIB)
    (folder / "artifacts/distill_data/teacher_signal/banks/topk_64_t2/data").symlink_to(disk)
    return folder


def make_config(directory):
    places = {"signals": str(directory.parent / "disk"), "cache": "../cache"}
    students = {"one": {"model": "s"}, "two": {"model": "s", "pool": True}}
    return {"categories": ["banks"], "teacher": {"model": "owner/t"}, "students": students} | places


def record(directory, name, *rows):
    path = directory / f"logs/{name}.benchmark.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("s\th:m:s\tmax_rss\n" + "".join(f"{seconds}\t0:00:00\t1.0\n" for seconds in rows))


def test_every_file_counts_once_in_its_step(directory):
    found = {usage.step.name: usage for usage in measure_usage(check_config(make_config(directory)), directory)}
    sizes = {name: round(usage.size / KIB) for name, usage in found.items()}
    assert sizes == pytest.approx(
        {
            "downloads": 400, "answer cache": 60, "answers and splits": 50, "signals": 310, "tokenized examples": 80,
            "checkpoints": 200, "kept evaluations": 15, "students": 200, "predictions and scores": 40, "exports": 50,
            "report": 5,
        },
        abs=12,
    )  # fmt: skip
    assert {name for name, usage in found.items() if usage.places} == {"answer cache", "signals"}
    assert sum(sizes.values()) == pytest.approx(sum(FILES.values()) + 360, abs=60)


def test_the_time_is_that_of_the_recorded_jobs(directory):
    record(directory, "compute_signal/banks.topk_64_t2", 427.5)
    record(directory, "compute_signal/funds.topk_64_t2", 2.5)
    record(directory, "train_student/one/banks", 60)
    assert read_seconds(directory, ["compute_signal"]) == 430
    assert read_seconds(directory, ["compute_signal", "train_student"]) == 490
    assert read_seconds(directory, ["predict_answers"]) is None


def test_the_table_says_what_can_be_removed(directory, capsys):
    import yaml

    record(directory, "compute_signal/banks.topk_64_t2", 427.5)
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(make_config(directory)))
    disk.main(["--configfile", str(path), "--directory", str(directory)])
    printed = capsys.readouterr().out
    assert re.search(r"^signals\* +3\d\d kB +7 min +yes, once the students are trained$", printed, flags=re.MULTILINE)
    assert re.search(r"^students +2\d\d kB +– +no: they are the result$", printed, flags=re.MULTILINE)
    assert re.search(rf"^total +1.\d+ MB +\d.* free in {directory}$", printed, flags=re.MULTILINE)
    assert f"* signals: {directory.parent}/disk/banks/topk_64_t2" in printed
