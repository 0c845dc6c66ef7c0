"""Progress that people can follow: a bar on a terminal, a line every half minute in a log."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts records and generated tokens."""

    def __init__(self, total: int, what: str):
        self.total = total
        self.what = what
        self.records = self.tokens = 0
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(total=total, desc=what, unit="record") if sys.stderr.isatty() else None

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second since the start."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, records: int, tokens: int) -> None:
        """Count a finished batch, and show it when it is time to."""
        self.records += records
        self.tokens += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.tokens_per_second:.0f} tokens/s", refresh=False)
            self.bar.update(records)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            left = (self.total - self.records) * self.seconds / self.records
            log.info(
                "%s: %d of %d records, %.0f tokens/s, about %.0f min left",
                self.what,
                self.records,
                self.total,
                self.tokens_per_second,
                left / 60,
            )

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
