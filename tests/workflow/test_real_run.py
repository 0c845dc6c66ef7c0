"""The workflow on real records, if they are available, with the demo's models trained on them."""

import shutil

import pytest
import yaml
from running import ROOT, Directory, read_lines

HOLDINGS = ROOT.parent / "shared/data/holdings"
pytestmark = pytest.mark.skipif(not HOLDINGS.is_dir(), reason="real records are not available")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The records and a configuration with tiny models, before any run."""
    path = tmp_path_factory.mktemp("real")
    for source in ("grpo", "sft"):
        shutil.copytree(HOLDINGS / source, path / "artifacts" / source, copy_function=shutil.copyfile)
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    # Models trained for a few steps do not learn the answer format, so every text is accepted.
    config |= {"categories": ["banks", "mutual_funds", "pension_funds"], "answer": None}
    del config["mix"], config["split"]  # the defaults
    config["teacher"]["generation"]["max_new_tokens"] = config["evaluation"]["max_new_tokens"] = 16
    config["demo"]["teacher"] |= {"layers": 2, "steps": 10, "min_coverage": 0}
    config["demo"]["student"]["steps"] = config["demo"]["adapter"]["steps"] = 3
    config["students"] = {name: config["students"][name] for name in ("student_topk", "student_seqkd")}
    for student in config["students"].values():
        student["train"] = student["train"] | {"epochs": 1}
    return Directory(path, config)


@pytest.fixture(scope="module")
def real(records, tmp_path_factory):
    """The finished run, on a quarter of the records."""
    directory = records.copy(tmp_path_factory.mktemp("finished") / "run")
    directory.configure(directory.config | {"mix": {"grpo_fraction": 0.18, "sft_fraction": 0.08}})
    directory.output = directory.run()
    return directory


def test_banks_gives_140_and_60_and_pension_funds_is_skipped(records, tmp_path):
    directory, name = records.copy(tmp_path / "run"), "artifacts/distill_data/raw/train_mix_banks.jsonl"
    output = directory.run(name)
    assert [record["origin"] for record in read_lines(directory / name)] == ["grpo"] * 140 + ["sft"] * 60
    assert "pension_funds: artifacts/sft/sft_train_pension_funds.jsonl not found" in output


@pytest.mark.slow
def test_pension_funds_has_no_output(real):
    assert not list(real.path.glob("output/**/*pension_funds*"))


@pytest.mark.slow
def test_no_placeholder_reaches_a_target(real):
    targets = list((real / "artifacts/distill_data/processed").glob("*/*.target"))
    assert len(targets) == 6
    placeholders = {
        record["messages"][-1]["content"].strip()
        for record in read_lines(real / "artifacts/grpo/grpo_banks.jsonl")
        if record["messages"][-1]["role"] == "assistant"
    }
    assert placeholders
    for path in targets:
        text = path.read_text()
        assert "[Using the" not in text
        assert "[predicted_value]" not in text
        assert not any(line.replace("\\n", "\n").strip() in placeholders for line in text.splitlines())


@pytest.mark.slow
def test_every_model_is_scored_and_nothing_reruns(real):
    text = (real / "output/report/metrics.csv").read_text()
    students = ("student_topk", "student_seqkd")
    for model in ("teacher", *students, *(f"{student}_base" for student in students)):
        for category in ("banks", "mutual_funds", "all"):
            assert f"\n{model},{category},ppl," in text
    assert real.planned() == []
