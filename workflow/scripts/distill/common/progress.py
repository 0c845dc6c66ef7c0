"""Progress of long jobs: a bar on a terminal, a log line every 30 seconds elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Count finished records and generated tokens, and report them.

    Args:
        total: number of records, cached ones included.
        what: name of the job in log lines.
        done: number of records from the cache; they do not count towards the speed.
    """

    def __init__(self, total: int, what: str, done: int = 0):
        self.total = total
        self.what = what
        self.done = done
        self.records = self.tokens = 0
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(total=total, desc=what, unit="record", initial=done) if sys.stderr.isatty() else None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second since the start."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, records: int, tokens: int) -> None:
        """Count finished records and their tokens; update the bar, or log a line if the last one is old enough."""
        self.records += records
        self.tokens += tokens
        cached = f", {self.done / self.total:.0%} from the cache" if self.done else ""
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.tokens_per_second:.0f} tokens/s{cached}", refresh=False)
            self.bar.update(records)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            finished = self.done + self.records
            # The remaining time is unknown until the first record is finished.
            seconds = (self.total - finished) * self.seconds / self.records if self.records else None
            left = "" if seconds is None else f", about {seconds / 60:.0f} min left"
            speed = f"{self.tokens_per_second:.0f} tokens/s"
            logger.info("%s: %d of %d records, %s%s%s", self.what, finished, self.total, speed, cached, left)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
