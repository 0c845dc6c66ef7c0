"""Reports to trackers: what arrives, in which run, and that no tracker can stop or delay a job."""

import logging
import threading

import pytest
from recording_tracker import NAME, register

from distill.common import reporter as reporting
from distill.common import trackers
from distill.common.errors import InputError
from distill.common.progress import Progress
from distill.common.reporter import Reporter
from distill.common.trackers import TRACKERS, TrackerOptions, TrackerType, check_installed

CONFIG = {"method": "forward_kl", "temperature": 2.0, "teachers": ["models/teacher"]}


@pytest.fixture
def runs(monkeypatch):
    return register(monkeypatch)


@pytest.fixture
def make(tmp_path):
    def make(key="k", name="student_kd/banks", trackers=(NAME,)):
        options = TrackerOptions(list(trackers), "holdings")
        return Reporter(options, "train_student", name, key, CONFIG, tmp_path / "trackers")

    return make


class Killed(BaseException):
    pass


def test_names_settings_values_and_card_arrive(make, runs):
    with make() as reporter:
        reporter.start()
        reporter.log({"train/loss": 1.5, "train/step": 10, "train/is_late": True}, 10)
        reporter.log({"val/loss": 2.5}, 10)
        reporter.add_card("# student_kd")
    ((number, run),) = runs.items()
    (opened,) = run.opened
    assert (opened.project, opened.rule, opened.name, opened.id) == (
        "holdings",
        "train_student",
        "student_kd/banks",
        number,
    )
    assert opened.config == CONFIG
    assert opened.texts == {"method": "forward_kl", "temperature": "2.0", "teachers": '["models/teacher"]'}
    assert run.lines == [(10, {"train/loss": 1.5, "train/step": 10.0, "train/is_late": 1.0}), (10, {"val/loss": 2.5})]
    assert run.cards == [(10, "# student_kd")]
    assert run.statuses == ["finished"]


def test_only_finite_numbers_are_reported(make, runs):
    with make() as reporter:
        reporter.start()
        reporter.log({"a": float("nan"), "b": None, "c": "text", "d": ["warning"], "e": float("inf"), "f": 1}, 1)
    (run,) = runs.values()
    assert run.lines == [(1, {"f": 1.0})]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "failed"), (Killed, "interrupted"), (SystemExit, "interrupted")]
)
def test_a_job_that_did_not_finish_goes_on_in_the_same_run(make, runs, error, status):
    def work():
        with make() as reporter:
            reporter.start()
            reporter.log({"loss": 3.0}, 10)
            raise error

    with pytest.raises(error):
        work()
    with make() as reporter:
        reporter.start(5)
        reporter.log({"loss": 2.0}, 20)
    (run,) = runs.values()
    assert [opened.first_step for opened in run.opened] == [0, 5]
    assert run.get("loss") == [(10, 3.0), (20, 2.0)]
    assert run.statuses == [status, "finished"]


def test_a_job_that_was_killed_without_a_word_goes_on_in_the_same_run(make, runs):
    make().start()  # and never closed
    with make() as reporter:
        reporter.start()
    assert len(runs) == 1


@pytest.mark.parametrize("other", [{"key": "other"}, {"name": "student_kd/funds"}])
def test_other_jobs_have_runs_of_their_own(make, runs, other):
    make().start()
    with make(**other) as reporter:
        reporter.start()
    assert len(runs) == 2


def test_a_finished_job_that_is_repeated_has_a_new_run(make, runs):
    for _ in range(2):
        with make() as reporter:
            reporter.start()
    assert [len(run.opened) for run in runs.values()] == [1, 1]


def test_without_trackers_nothing_is_written(make, tmp_path):
    with make(trackers=()) as reporter:
        reporter.start()
        reporter.log({"loss": 1.0}, 1)
        reporter.add_card("card")
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_the_first_reports(make, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    with make() as reporter:
        reporter.start()
        reporter.log({"loss": 1.0}, 1)
    assert runs == {}
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_never_started_is_not_opened(make, runs):
    """As of a job whose answers all come from the cache."""
    with make():
        pass
    assert runs == {}


# ---- Trackers that fail ----


def add_tracker(monkeypatch, name, open_run):
    monkeypatch.setitem(TRACKERS, name, TrackerType("A tracker for tests.", "json", open_run))


def test_a_tracker_that_cannot_be_opened_leaves_job_and_other_trackers_alone(make, runs, monkeypatch, caplog):
    def refuse(run, folder):
        raise ConnectionError("no route to the server")

    add_tracker(monkeypatch, "away", refuse)
    with make(trackers=("away", NAME)) as reporter:
        reporter.start()
        reporter.log({"loss": 1.0}, 1)
        reporter.log({"loss": 0.5}, 2)
    (run,) = runs.values()
    assert run.get("loss") == [(1, 1.0), (2, 0.5)]
    warnings = [record.message for record in caplog.records]
    assert [text for text in warnings if "no route" in text][0].startswith(
        "report_to: away: ConnectionError: no route to the server. The job goes on"
    )
    # The opening, two lines and the end.
    assert "report_to: away lacks the last 4 reports: ConnectionError: no route to the server" in warnings


def test_what_a_tracker_refused_is_reported_when_it_works_again(make, runs, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(reporting, "RETRY_SECONDS", 0.01)
    answers = iter([OSError("away"), OSError("away"), None])
    inner = TRACKERS[NAME].open
    arrived = threading.Event()

    def open_run(run, folder):
        tracker = inner(run, folder)

        class Flaky:
            def log(self, values, step):
                if problem := next(answers, None):
                    raise problem
                tracker.log(values, step)
                if step == 2:
                    arrived.set()

            add_card, finish = tracker.add_card, tracker.finish

        return Flaky()

    add_tracker(monkeypatch, "flaky", open_run)
    with make(trackers=("flaky",)) as reporter:
        reporter.start()
        reporter.log({"loss": 1.0}, 1)
        reporter.log({"loss": 0.5}, 2)
        assert arrived.wait(60)
    (run,) = runs.values()
    assert run.get("loss") == [(1, 1.0), (2, 0.5)]
    texts = [record.message for record in caplog.records]
    assert sum("OSError: away" in text for text in texts) == 1
    assert "report_to: flaky works again; nothing was lost" in texts


def test_a_tracker_that_hangs_does_not_hold_a_job(make, runs, monkeypatch, caplog):
    never = threading.Event()
    monkeypatch.setattr(reporting, "CLOSE_SECONDS", 0.2)
    add_tracker(monkeypatch, "stuck", lambda run, folder: never.wait())
    try:
        with make(trackers=("stuck", NAME)) as reporter:
            reporter.start()
            reporter.log({"loss": 1.0}, 1)
            assert not never.is_set()  # `start` and `log` have returned
    finally:
        never.set()
    (run,) = runs.values()
    assert run.get("loss") == [(1, 1.0)]
    assert "report_to: stuck lacks the last 3 reports: it has not answered in time" in caplog.text


def test_a_folder_that_cannot_be_written_does_not_end_a_job(runs, tmp_path, caplog):
    (tmp_path / "trackers").write_text("a file")
    options = TrackerOptions([NAME], "p")
    with Reporter(options, "train_student", "s/banks", "k", {}, tmp_path / "trackers") as reporter:
        reporter.start()
        reporter.log({"loss": 1.0}, 1)
    (run,) = runs.values()
    assert run.get("loss") == [(1, 1.0)]
    assert "goes on in another run" in caplog.text


# ---- Progress ----


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_progress_is_reported_with_the_speed_since_the_last_report(make, runs):
    clock = Clock()
    with make() as reporter:
        progress = Progress(100, "answers", done=20, clock=clock, reporter=reporter)
        for _ in range(5):  # 5 records of 10 tokens in 4 s
            clock.now += 4
            progress.add(5, 50)
        progress.close()
    (run,) = runs.values()
    assert run.opened[0].first_step == 20
    assert run.get("progress/records") == [(35, 35.0), (45, 45.0)]  # after 12 s, and at the end
    assert run.get("progress/share") == [(35, 0.35), (45, 0.45)]
    assert [value for _, value in run.get("progress/records_per_second")] == pytest.approx([15 / 12, 10 / 8])
    assert [value for _, value in run.get("progress/tokens_per_second")] == pytest.approx([150 / 12, 100 / 8])


def test_a_second_count_of_a_job_goes_on_after_the_first(make, runs):
    """As of prompts that are asked again."""
    clock = Clock()
    with make() as reporter:
        for total, earlier in ((10, 0), (3, 10)):
            progress = Progress(total, "answers", clock=clock, reporter=reporter, earlier=earlier)
            clock.now += 1
            progress.add(total)
            progress.close()
    (run,) = runs.values()
    assert [step for step, _ in run.lines] == [10, 13]
    assert "progress/tokens_per_second" not in run.lines[0][1]


# ---- What is installed ----


def test_trackers_that_are_not_installed_are_refused_with_their_packages(monkeypatch):
    monkeypatch.setitem(TRACKERS, "one", TrackerType("", "stillhouse_absent_one", lambda run, folder: None))
    monkeypatch.setitem(TRACKERS, "two", TrackerType("", "stillhouse_absent_two", lambda run, folder: None))
    with pytest.raises(InputError, match="the package stillhouse_absent_one: pip install stillhouse_absent_one "):
        check_installed(["one"])
    with pytest.raises(InputError, match="pip install stillhouse_absent_one stillhouse_absent_two "):
        check_installed(["one", "two"])
    check_installed([])


def test_a_folder_with_the_name_of_a_package_is_no_package(monkeypatch, tmp_path):
    """wandb writes its runs to a folder `wandb`, from which Python can import."""
    (tmp_path / "stillhouse_runs").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(TRACKERS, "runs", TrackerType("", "stillhouse_runs", lambda run, folder: None))
    assert trackers.find_missing(["runs"]) == ["stillhouse_runs"]
