"""Reports a job's figures to trackers without ever making the job wait for them or fail with them."""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.common.digest import digest_of
from distill.common.files import write_atomically
from distill.common.trackers import CLOSE_SECONDS, FOLDER, STOP_SECONDS, TRACKERS, TrackedRun, Tracker, TrackerOptions

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60.0  # between attempts to report to a tracker that failed


class Worker(threading.Thread):
    """Makes the calls to one tracker in their order, in a thread of its own.

    A call that raises is repeated every RETRY_SECONDS until it succeeds or the job ends, and the calls after it wait.
    So nothing is lost while a server is away, and a job goes on with a tracker that never works.

    Args:
        name: of the tracker.
        open: opens the run.
    """

    def __init__(self, name: str, open: Callable[[], Tracker]):
        super().__init__(name=f"report to {name}", daemon=True)
        self.tracker_name, self.open = name, open
        self.tracker: Tracker | None = None
        self.calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self.expected = self.made = 0  # calls; each number is changed by one thread alone
        self.problem: str | None = None  # the last failure that was logged
        self.is_closing = threading.Event()

    def put(self, call: Callable[[Tracker], None]) -> None:
        """Make a call when those before it are made."""
        self.expected += 1
        self.calls.put(call)

    def run(self) -> None:
        """Make calls until `close`."""
        while (call := self.calls.get()) is not None:
            while not self.attempt(call):
                is_last = self.is_closing.is_set()
                self.is_closing.wait(RETRY_SECONDS)
                if is_last:
                    return
            self.made += 1

    def attempt(self, call: Callable[[Tracker], None]) -> bool:
        """Make a call, after opening the run if need be; whether it succeeded. Failures are logged once each."""
        try:
            if self.tracker is None:
                self.tracker = self.open()
            call(self.tracker)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if problem != self.problem:
                logger.warning(
                    "report_to: %s: %s. The job goes on and tries again every %.0f s",
                    self.tracker_name,
                    problem,
                    RETRY_SECONDS,
                )
            self.problem = problem
            return False
        if self.problem is not None:
            logger.info("report_to: %s works again; nothing was lost", self.tracker_name)
            self.problem = None
        return True

    def close(self, status: str) -> None:
        """Let the run end after the calls so far; a call that fails now is made once more."""
        self.put(lambda tracker: tracker.finish(status))
        self.calls.put(None)
        self.is_closing.set()

    def wait(self, seconds: float) -> None:
        """Wait until all calls are made, with a warning if they are not."""
        self.join(max(seconds, 0))
        if missing := self.expected - self.made:
            reason = "it has not answered in time" if self.is_alive() else self.problem
            logger.warning("report_to: %s lacks the last %d reports: %s", self.tracker_name, missing, reason)


class Reporter:
    """A job's run in all trackers of the configuration; without any, it does nothing.

    It is a context manager, whose end ends the run. A job that ends by an exception is resumed in the same run, as long
    as what it works on has the same key. If it finishes, a later job with the same key has a run of its own.

    Args:
        options: the trackers.
        rule: rule of the job.
        name: what the job works on; the runs' name.
        key: digest of everything that the job's result depends on.
        config: the job's settings by name.
        folder: of trackers that write to the disk.
    """

    def __init__(
        self,
        options: TrackerOptions,
        rule: str,
        name: str,
        key: str,
        config: Mapping[str, Any],
        folder: Path = FOLDER,
    ):
        self.options, self.rule, self.name, self.config, self.folder = options, rule, name, config, folder
        # Of several processes that train together, the first reports.
        self.names = list(dict.fromkeys(options.report_to)) if os.environ.get("RANK", "0") == "0" else []
        self.key = digest_of([rule, name, key])[:16]
        self.workers: list[Worker] = []
        self.last_step = 0

    @property
    def marker(self) -> Path:
        """The file with the id of the run, as long as it is unfinished."""
        return self.folder / "unfinished" / self.key

    def read_id(self) -> str:
        """The id of the unfinished run with the same key, or a new one."""
        new = digest_of([self.key, time.time_ns()])[:16]
        try:
            if self.marker.is_file():
                return self.marker.read_text(encoding="utf-8").strip()
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(self.marker) as file:
                file.write(new + "\n")
        except OSError as error:
            logger.warning("report_to: %s; if this job is killed, it goes on in another run", error)
        return new

    def remove_marker(self) -> None:
        """Forget the run's id, so that a repeated job has another."""
        try:
            self.marker.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("report_to: %s; if this job is repeated, it goes on in the same run", error)

    def start(self, step: int = 0) -> None:
        """Open the run, once; what will be reported comes after this step."""
        if not self.names or self.workers:
            return
        project = self.options.tracking_project
        run = TrackedRun(project, self.rule, self.name, self.read_id(), self.config, step)
        self.last_step = step
        for name in self.names:
            worker = Worker(name, lambda name=name: TRACKERS[name].open(run, self.folder))  # type: ignore[misc]
            self.workers.append(worker)
            worker.put(lambda tracker: None)  # open the run now, so that problems show early
            worker.start()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Report the finite numbers among values; others are left out."""
        numbers = {name: float(value) for name, value in values.items() if is_finite(value)}
        self.last_step = step
        for worker in self.workers:
            worker.put(lambda tracker: tracker.log(numbers, step))

    def add_card(self, text: str) -> None:
        """Add a model card in Markdown to the run."""
        for worker in self.workers:
            worker.put(lambda tracker, step=self.last_step: tracker.add_card(text, step))  # type: ignore[misc]

    def close(self, status: str) -> None:
        """End the run as `finished`, `failed` or `interrupted`, and wait for the trackers for a limited time."""
        if not self.workers:
            return
        for worker in self.workers:
            worker.close(status)
        end = time.monotonic() + (STOP_SECONDS if status == "interrupted" else CLOSE_SECONDS)
        for worker in self.workers:
            worker.wait(end - time.monotonic())
        if status == "finished":
            self.remove_marker()
        self.workers = []

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        self.close("finished" if error is None else status)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
