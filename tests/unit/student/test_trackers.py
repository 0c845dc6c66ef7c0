"""A training in a tracker: names, settings, values and card arrive, and a killed training goes on in the same run."""

import pytest
from recording_tracker import NAME, register
from training_runs import Killed, assert_same_weights, kill_at, log_lines, train_student, weights

from distill.common.trackers import TrackerOptions
from distill.student.student_run import list_card_settings, list_result_settings

SETTINGS = {"epochs": 3.0, "save_steps": 2, "logging_steps": 1, "gradient_checkpointing": False}
STEPS = 9


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return register(monkeypatch)


def list_values(lines, name):
    """(step, value) of the lines of a training log that have a value."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def test_what_a_training_reports(options, records, runs):
    run = options(**SETTINGS, trackers=TrackerOptions([NAME], "holdings"))
    train_student(run, records, records[:2])
    (tracked,) = runs.values()
    (opened,) = tracked.opened
    assert (opened.project, opened.rule, opened.name) == ("holdings", "train_student", "s/banks")
    assert list_card_settings(run).items() <= opened.config.items()
    assert (opened.config["method"], opened.config["train_records"]) == ("forward_kl", len(records))
    lines = log_lines(run)
    for name in ("loss", "ce", "kd", "grad_norm", "learning_rate", "tokens_per_second", "memory_mb"):
        assert tracked.get(f"train/{name}") == list_values(lines, name) != []
    for name in ("loss", "ce", "kd"):
        assert tracked.get(f"val/{name}") == list_values(lines, f"val_{name}") != []
    assert tracked.cards == [(lines[-1]["step"], (run.out / "README.md").read_text())]
    assert tracked.statuses == ["finished"]


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_killed_training_goes_on_in_the_same_run(options, records, runs, monkeypatch, killed_at):
    """Before the first checkpoint, and between two."""
    run = options(**SETTINGS, trackers=TrackerOptions([NAME]))
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            train_student(run, records, records[:2])
    train_student(run, records, records[:2])
    (tracked,) = runs.values()
    assert [opened.first_step for opened in tracked.opened] == [0, killed_at // 2 * 2]
    assert tracked.statuses == ["interrupted", "finished"]
    # Steps between checkpoint and kill are reported twice, with the same loss; the last report is the log's.
    found = tracked.get("train/loss")
    assert [step for step, _ in found] == [*range(1, killed_at + 1), *range(killed_at // 2 * 2 + 1, STEPS + 1)]
    assert list(dict(found).items()) == list_values(log_lines(run), "loss")
    assert len(set(found)) == len(dict(found))


def test_a_training_that_is_repeated_has_a_new_run(options, records, runs):
    run = options(**SETTINGS, trackers=TrackerOptions([NAME]))
    for _ in range(2):
        train_student(run, records, [])
    assert len(runs) == 2


def test_trackers_do_not_change_the_student(options, records, runs, monkeypatch):
    """A killed training goes on from its checkpoint although trackers have been turned on."""
    run, other = options(out="one", **SETTINGS), options(out="other", **SETTINGS)
    tracked = options(out="other", **SETTINGS, trackers=TrackerOptions([NAME]))
    assert list_result_settings(tracked) == list_result_settings(other)
    assert list_card_settings(tracked) == list_card_settings(other)
    train_student(run, records, records[:2])
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train_student(other, records, records[:2])
    train_student(tracked, records, records[:2])
    (found,) = runs.values()
    assert [step for step, _ in found.get("train/loss")] == [*range(5, STEPS + 1)]
    assert_same_weights(weights(tracked), weights(run), rtol=0, atol=0)
    assert (tracked.out / "README.md").read_text() == (run.out / "README.md").read_text()


def test_a_tracker_that_always_fails_does_not_end_a_training(options, records, runs, monkeypatch, caplog):
    def refuse(*_):
        raise ConnectionError("no route to the server")

    monkeypatch.setattr("recording_tracker.RecordedRun.log", refuse)
    run = options(**SETTINGS, trackers=TrackerOptions([NAME]))
    train_student(run, records, records[:2])
    assert len(list_values(log_lines(run), "loss")) == STEPS
    assert "no route to the server. The job goes on" in caplog.text
    assert f"report_to: {NAME} lacks the last" in caplog.text


def test_a_missing_tracker_is_refused_before_a_model_is_loaded(tmp_path, models, monkeypatch):
    from training_runs import make_arguments

    import train_student as script
    from distill.common.errors import InputError
    from distill.common.trackers import TRACKERS, TrackerType

    monkeypatch.setitem(TRACKERS, "absent", TrackerType("", "stillhouse_absent", lambda run, folder: None))
    with pytest.raises(InputError, match="pip install stillhouse_absent"):
        script.main([*make_arguments(tmp_path, models), "--report-to", "absent"])
