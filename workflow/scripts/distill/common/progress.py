"""Progress of long jobs: a bar on a terminal, a log line every 30 seconds elsewhere; and when the job will end.

Jobs of the workflow also write it for `make status`, see `common/progress_file.py`.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from distill.common.progress_file import get_progress_file
from distill.common.reporter import Reporter

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_REPORTS = 10.0  # to trackers
STEADY = 1.5  # the work still speeds up if the latter half of the time is faster than the quarter before by this factor
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Pace:
    """Estimates when work will end, from its speed in the latter half of the time so far.

    While work starts it has no steady speed: the first answers of a batch end long after they begin, and the short ones
    end first. So there is no estimate as long as the speed grows.

    Args:
        total: amount of work, in any unit.
        now: seconds on the clock at the start.
    """

    def __init__(self, total: float, now: float):
        self.total, self.started, self.notes = total, now, 0
        self.marks: deque[tuple[float, float]] = deque([(0.0, 0.0)])  # (seconds since the start, work done)

    def note(self, done: float, now: float) -> None:
        """Note how much work is done at a time."""
        seconds = now - self.started
        self.notes += 1
        if len(self.marks) > 1 and seconds - self.marks[-2][0] < seconds / 100:  # keeps the number of marks small
            self.marks.pop()
        self.marks.append((seconds, done))
        while len(self.marks) > 2 and self.marks[1][0] <= seconds / 4:
            self.marks.popleft()

    def get_done(self, seconds: float) -> float:
        """Return how much work was done at a time; between two notes it is taken to grow evenly."""
        before, work = self.marks[0]
        for after, done in self.marks:
            if after >= seconds:
                return done if after == before else work + (done - work) * (seconds - before) / (after - before)
            before, work = after, done
        return work

    def estimate(self) -> float | None:
        """Return the seconds that are left after the last note; None if the speed is not steady yet."""
        seconds, done = self.marks[-1]
        if done >= self.total:
            return 0.0
        if self.notes < 2:
            return None
        quarter, half = self.get_done(seconds / 4), self.get_done(seconds / 2)
        speed, before = (done - half) / (seconds / 2 or 1), (half - quarter) / (seconds / 4 or 1)
        if speed <= 0 or speed > STEADY * before:
            return None
        return (self.total - done) / speed


def format_left(seconds: float | None) -> str:
    """Return the end of a line that says how much time is left; empty if nobody knows.

    >>> format_left(None), format_left(42), format_left(780), format_left(11_100)
    ('', ', about 42 s left', ', about 13 min left', ', about 3.1 h left')
    """
    return "" if seconds is None else f", about {format_duration(seconds)} left"


def format_duration(seconds: float) -> str:
    """Format a duration in the largest unit that gives more than one digit, or in seconds.

    >>> format_duration(42), format_duration(780), format_duration(11_100)
    ('42 s', '13 min', '3.1 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class Progress:
    """Count finished records and their tokens, and report them.

    Args:
        total: number of records, cached ones included.
        what: name of the job in log lines.
        done: number of records from the cache; they do not count towards the speed.
        work: what the records that are not cached cost together, in any unit, for the time left; by default each costs
            the same.
        unit: name of what is counted, in the plural.
        source: where those that are done come from.
        clock: returns seconds.
        memory: returns the peak memory so far in MiB, as `reserved_mb` of models/memory.py; 0 if it is not known.
        reporter: shows the progress in trackers.
        earlier: records that the reporter has from other counts of the same job.
    """

    def __init__(
        self,
        total: int,
        what: str,
        done: int = 0,
        work: float | None = None,
        unit: str = "records",
        source: str = "the cache",
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] | None = None,
        reporter: Reporter | None = None,
        earlier: int = 0,
    ):
        self.total, self.what, self.done, self.unit, self.source, self.clock = total, what, done, unit, source, clock
        self.reporter, self.earlier = reporter, earlier
        self.records = self.tokens = 0
        self.worked = 0.0
        self.started = self.last_line = clock()
        self.reported = (self.started, 0, 0)  # time, records and tokens of the last report
        if reporter is not None:
            reporter.start(earlier + done)
        self.pace = Pace(total - done if work is None else work, self.started)
        self.memory, self.noted = memory, dict[str, float]()
        self.bar: Any = None
        self.write(is_due=True)
        if sys.stderr.isatty() and find_spec("tqdm"):  # the environment of the data steps has no tqdm
            from tqdm import tqdm  # not before a download's client has turned its own bars off

            self.bar = tqdm(total=total, desc=what, initial=done, bar_format=BAR_FORMAT)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second since the start."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, records: int, tokens: int = 0, work: float | None = None) -> None:
        """Count finished records and their tokens; update the bar, or log a line if the last one is old enough.

        Args:
            records: number of records.
            tokens: number of their tokens.
            work: what they cost, if the work of all was given.
        """
        self.records += records
        self.tokens += tokens
        self.worked += records if work is None else work
        now = self.clock()
        self.pace.note(self.worked, now)
        if now - self.reported[0] >= SECONDS_BETWEEN_REPORTS:
            self.report(now)
        if self.bar is not None:
            self.bar.set_postfix_str(self.describe().removeprefix(", "), refresh=False)
            self.bar.update(records)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            finished = self.done + self.records
            logger.info("%s: %d of %d %s%s", self.what, finished, self.total, self.unit, self.describe())
        self.write()

    def note(self, **figures: float) -> None:
        """Note further figures for `make status`: `loss`, `tokens_per_second`, `memory_mb`."""
        self.noted |= figures
        self.write()

    def get_figures(self) -> dict[str, Any]:
        """Return what `make status` shows: counts, speed since the start, seconds left, and what was noted."""
        seconds = self.seconds
        figures: dict[str, Any] = {"what": self.what, "done": self.done + self.records, "total": self.total}
        figures |= {"unit": self.unit, "seconds_left": self.pace.estimate()}
        if self.records and seconds:
            figures["units_per_second"] = self.records / seconds
        if self.tokens and seconds:
            figures["tokens_per_second"] = self.tokens / seconds
        if self.memory is not None:
            figures["memory_mb"] = self.memory()
        return figures | self.noted

    def write(self, is_due: bool = False) -> None:
        """Write the figures for `make status`, if this is a job of the workflow.

        Args:
            is_due: write even if the last write was a moment ago.
        """
        file = get_progress_file()
        if file is not None and (is_due or file.is_due()):
            file.write(self.get_figures())

    def describe(self) -> str:
        """Return speed, share from the cache and time left, as the end of a line."""
        speed = f", {self.tokens_per_second:.0f} tokens/s" if self.tokens else ""
        cached = f", {self.done / self.total:.0%} from {self.source}" if self.done else ""
        return f"{speed}{cached}{format_left(self.pace.estimate())}"

    def report(self, now: float) -> None:
        """Report to trackers how much is done, and the speed since the last report."""
        before, records, tokens = self.reported
        if self.reporter is None or now <= before or self.records == records:
            return
        self.reported = (now, self.records, self.tokens)
        finished, seconds = self.done + self.records, now - before
        values = {
            self.unit: finished,
            "share": finished / self.total,
            f"{self.unit}_per_second": (self.records - records) / seconds,
        }
        if self.tokens:
            values["tokens_per_second"] = (self.tokens - tokens) / seconds
        self.reporter.log({f"progress/{name}": value for name, value in values.items()}, self.earlier + finished)

    def close(self) -> None:
        """Close the bar, after the last report."""
        self.write(is_due=True)
        self.report(self.clock())
        if self.bar is not None:
            self.bar.close()
