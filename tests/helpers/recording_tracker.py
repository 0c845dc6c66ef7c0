"""A tracker for tests, which keeps what it is told; registered under a name of its own."""

from dataclasses import dataclass, field
from typing import Any

from distill.common.trackers import TRACKERS, TrackerType

NAME = "recording"


@dataclass
class RecordedRun:
    """A run as the tracker has it, opened once or again.

    Attributes:
        opened: the `TrackedRun` of each opening.
        lines: (step, values) in the order of their arrival.
        cards: (step, text) of each card.
        statuses: how the run ended, each time.
    """

    opened: list = field(default_factory=list)
    lines: list = field(default_factory=list)
    cards: list = field(default_factory=list)
    statuses: list = field(default_factory=list)

    def log(self, values, step):
        self.lines.append((step, dict(values)))

    def add_card(self, text, step):
        self.cards.append((step, text))

    def finish(self, status):
        self.statuses.append(status)

    def get(self, name):
        """(step, value) of each line that has a value."""
        return [(step, values[name]) for step, values in self.lines if name in values]


def register(monkeypatch) -> dict[str, Any]:
    """Register the tracker; returns its runs by id. It is a package that is installed, so that checks accept it."""
    runs: dict[str, RecordedRun] = {}

    def open_run(run, folder):
        found = runs.setdefault(run.id, RecordedRun())
        found.opened.append(run)
        return found

    monkeypatch.setitem(TRACKERS, NAME, TrackerType("A tracker for tests.", "recording_tracker", open_run))
    return runs
