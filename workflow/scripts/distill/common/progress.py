"""Progress that people can follow: a bar on a terminal, a line every half minute in a log."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts records and generated tokens.

    Args:
        total: records in all.
        done: those that were there at the start, from the cache; they count for no speed.
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
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second since the start."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, records: int, tokens: int) -> None:
        """Count finished records, and show it when it is time to."""
        self.records += records
        self.tokens += tokens
        cached = f", {self.done / self.total:.0%} from the cache" if self.done else ""
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.tokens_per_second:.0f} tokens/s{cached}", refresh=False)
            self.bar.update(records)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            finished = self.done + self.records
            # Before the first answer has ended there is nothing to go by.
            seconds = (self.total - finished) * self.seconds / self.records if self.records else None
            left = "" if seconds is None else f", about {seconds / 60:.0f} min left"
            speed = f"{self.tokens_per_second:.0f} tokens/s"
            logger.info("%s: %d of %d records, %s%s%s", self.what, finished, self.total, speed, cached, left)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
