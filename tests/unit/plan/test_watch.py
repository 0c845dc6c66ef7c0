"""The table that is refreshed until Ctrl-C."""

import os
import sys

import pytest

from distill.common.errors import InputError
from distill.plan.watch import DEFAULT_SECONDS, fit, redraw, take_watch, watch


@pytest.mark.parametrize(
    ("arguments", "others", "seconds"),
    [
        (["--cores", "2"], ["--cores", "2"], None),
        (["--watch"], [], DEFAULT_SECONDS),
        (["--watch", "5", "all"], ["all"], 5.0),
        (["--watch=0.5", "--cores=2"], ["--cores=2"], 0.5),
        (["--profile", "local", "--watch", "all"], ["--profile", "local", "all"], DEFAULT_SECONDS),
        (["--watch", "--quiet", "all"], ["--quiet", "all"], DEFAULT_SECONDS),
    ],
)
def test_the_option_may_have_a_number(arguments, others, seconds):
    assert take_watch(arguments) == (others, seconds)


@pytest.mark.parametrize("value", ["0", "-3", "soon", "nan", ""])
def test_other_values_are_refused(value):
    with pytest.raises(InputError, match=f"--watch: expected a positive number of seconds, found '{value}'"):
        take_watch([f"--watch={value}"])


def run_watch(texts):
    """Watch texts, of which an exception is raised; Ctrl-C after the last one."""
    remaining = list(texts)

    def render():
        text = remaining.pop(0)
        if isinstance(text, Exception):
            raise text
        return text

    def stop(seconds):
        if not remaining:
            raise KeyboardInterrupt

    watch(render, 3.0, stop)


def test_without_a_terminal_each_look_is_printed(capsys):
    run_watch(["one\ntable", "another"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", every 3 s until Ctrl-C")
    assert lines[1:4] == ["one", "table", ""]
    assert lines[5] == "another"
    assert "\033" not in "".join(lines)


def test_on_a_terminal_it_is_drawn_in_place(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    run_watch(["one\ntable", "another"])
    blank, first, second = capsys.readouterr().out.split("\033[H")[1:]
    assert blank == "\033[J"
    assert "one\033[K\ntable\033[K\n" in first
    assert "another\033[K\n" in second
    assert first.endswith("\033[J")  # what an earlier, longer text left below


def test_a_text_that_is_too_long_for_the_terminal_is_cut():
    text = "\n".join(map(str, range(10)))
    assert fit(text, 10) == text
    assert fit(text, 4).splitlines() == ["0", "1", "2", "… 7 more lines"]
    assert redraw(text, 5).count("\n") == 4


def test_the_first_error_ends_it_and_a_later_one_is_shown(capsys):
    with pytest.raises(InputError, match="broken"):
        run_watch([InputError("broken")])
    run_watch(["one", InputError("broken for a moment"), "two"])
    shown = capsys.readouterr().out
    assert shown.index("one") < shown.index("error: broken for a moment") < shown.index("two")
