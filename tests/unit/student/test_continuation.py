"""Training that continues from the student of the previous training."""

import shutil

import pytest
from training_runs import Killed, assert_same_weights, change_run, kill_at, log_lines, train_student, weights

SETTINGS = {"epochs": 2.0, "continue_from": "previous", "gradient_checkpointing": False}


def remove_output(run):
    """As Snakemake does before it runs a job."""
    shutil.rmtree(run.out)


@pytest.fixture
def trained(options, records):
    """A run whose student is trained on half of the records, and kept for the next training."""
    run = options(**SETTINGS)
    train_student(run, records[: len(records) // 2], [])
    return run


def test_without_the_option_no_student_is_kept(options, records):
    run = options()
    train_student(run, records, [])
    assert not (run.checkpoints / ".previous").exists()


def test_a_changed_training_continues_from_the_weights_of_the_last_student(trained, options, records, tmp_path):
    model = shutil.copytree(trained.out, tmp_path / "copy")
    expected = options(out="expected", model=str(model), **SETTINGS | {"continue_from": "initial"})
    train_student(expected, records, [])

    remove_output(trained)
    train_student(trained, records, [])
    assert_same_weights(weights(trained), weights(expected), rtol=0, atol=0)
    assert "continued from the student of an earlier training" in (trained.out / "README.md").read_text()
    assert "an earlier training" not in (expected.out / "README.md").read_text()


def test_the_card_counts_the_trainings(trained, records):
    for _ in range(2):
        remove_output(trained)
        train_student(trained, records, [])
    assert "continued from the student of 2 earlier trainings" in (trained.out / "README.md").read_text()


def test_an_adapter_continues(options, records):
    settings = SETTINGS | {"lora_rank": 4, "batch_size": len(records), "gradient_accumulation_steps": 1}
    run = options(**settings)
    train_student(run, records, [])
    first = log_lines(run)
    merged = weights(run)

    remove_output(run)
    run = change_run(run, learning_rate=1e-12)  # too little to change the weights
    train_student(run, records, [])
    assert_same_weights(weights(run), merged, rtol=1e-6, atol=1e-8)
    assert log_lines(run)[0]["loss"] < first[0]["loss"]


def test_a_killed_training_resumes_and_still_continues(trained, records, monkeypatch, tmp_path):
    undisturbed = change_run(trained, out=tmp_path / "undisturbed", save_steps=1)
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    train_student(change_run(undisturbed, checkpoints=tmp_path / "checkpoints"), records, [])

    remove_output(trained)
    run = change_run(trained, save_steps=1)
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            train_student(run, records, [])
    train_student(run, records, [])
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)
    assert "an earlier training" in (run.out / "README.md").read_text()


def test_a_student_with_another_adapter_is_not_continued(trained, records, caplog):
    run = change_run(trained, lora_rank=4)
    remove_output(trained)
    with caplog.at_level("WARNING"):
        train_student(run, records, [])
    assert "other LoRA options: not continuing from it" in caplog.text
    assert "earlier training" not in (run.out / "README.md").read_text()
