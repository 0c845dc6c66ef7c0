"""The time that is left, on a made-up clock, for the ways in which the records of the jobs finish."""

import heapq
import logging
import random
import re

import pytest

from distill.common import progress as progress_module
from distill.common.progress import Progress

LENGTHS = {
    "lognormal": lambda draw: min(1024, int(draw.lognormvariate(5.9, 0.5)) + 20),
    "uniform": lambda draw: draw.randint(1, 512),
    "bimodal": lambda draw: 1024 if draw.random() < 0.1 else draw.randint(150, 300),
}


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def simulate_generation(count, lengths, rows=64, speed=25.0, start=5.0):
    """Return (seconds, tokens) of each answer of a continuous batch as it ends.

    Args:
        count: number of answers.
        lengths: draws the tokens of one.
        rows: answers at the same time.
        speed: tokens per second of each of them.
        start: seconds before the first token.
    """
    draw, running, ends = random.Random(1), [], []
    for index in range(count):
        tokens = lengths(draw)
        begin = start if index < rows else heapq.heappop(running)
        heapq.heappush(running, begin + tokens / speed)
        ends.append((begin + tokens / speed, tokens))
    return sorted(ends)


def read_lines(caplog, total):
    """Return (finished records, seconds left or None) of each line of the log."""
    units = {"s": 1, "min": 60, "h": 3600}
    lines = []
    for record in caplog.records:
        finished = int(re.search(rf": (\d+) of {total} records, ", record.getMessage())[1])
        left = re.search(r"about ([\d.]+) (s|min|h) left$", record.getMessage())
        lines.append((finished, float(left[1]) * units[left[2]] if left else None))
    return lines


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize(("count", "rows", "speed"), [(1000, 64, 12.0), (1500, 64, 25.0), (6000, 256, 20.0)])
def test_the_end_of_a_generation_is_foreseen_from_the_first_estimate(caplog, name, count, rows, speed):
    clock, cached = Clock(), 50
    ends = simulate_generation(count, LENGTHS[name], rows, speed)
    begin, end = clock.now, ends[-1][0]
    progress = Progress(count + cached, "answers", done=cached, clock=clock)
    truth = {}
    for number, (seconds, tokens) in enumerate(ends, start=1):
        clock.now = begin + seconds
        progress.add(1, tokens)
        truth[number + cached] = end - seconds
    lines = read_lines(caplog, count + cached)
    assert len(lines) >= end // 60
    given = [(left, truth[finished]) for finished, left in lines if left is not None and truth[finished] > end / 4]
    assert given
    for left, true in given:
        assert left == pytest.approx(true, rel=0.5, abs=30)


def test_batches_of_known_work_are_foreseen_though_their_records_get_shorter(caplog):
    """Signals: the longest records first, in batches of equal size, at a steady number of tokens a second."""
    clock = Clock()
    begin, draw = clock.now, random.Random(2)
    lengths = sorted((draw.randint(50, 2000) for _ in range(800)), reverse=True)
    progress = Progress(len(lengths), "signals", work=sum(lengths), clock=clock)
    end, seconds, truth = sum(lengths) / 1000, 0.0, {}
    for start in range(0, len(lengths), 16):
        batch = lengths[start : start + 16]
        seconds += sum(batch) / 1000
        clock.now = begin + seconds
        progress.add(len(batch), sum(batch), sum(batch))
        truth[start + len(batch)] = end - seconds
    lines = read_lines(caplog, len(lengths))
    assert len(lines) > 20
    assert lines[0][1] is None  # a single batch has no speed yet
    for finished, left in lines[1:]:
        assert left == pytest.approx(truth[finished], abs=31)


def test_work_that_slows_down_is_estimated_by_its_present_speed(caplog):
    clock = Clock()
    progress = Progress(1000, "answers", clock=clock)
    for number in range(1, 501):
        clock.now += 1 if number <= 100 else 4
        progress.add(1, 10)
    (_, *lefts) = [left for _, left in read_lines(caplog, 1000)]
    assert lefts[-1] == pytest.approx(4 * 503, abs=31)


def test_a_bar_says_the_same_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True, raising=False)
    clock = Clock()
    progress = Progress(100, "answers", done=20, clock=clock)
    for _ in range(40):
        clock.now += 2
        progress.add(1, 10)
    progress.close()
    assert "60/100 [" in (shown := capsys.readouterr().err)
    assert "5 tokens/s, 20% from the cache, about 80 s left]" in shown
