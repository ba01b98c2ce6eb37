"""How long work is shown: lines where there is no terminal, a bar where there is one."""

import io
import re

import pytest
from rich.console import Console

from mintage.cli import progress as module
from mintage.cli.progress import Lines, shown_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.fixture
def said():
    console = Console(file=io.StringIO(), width=40)
    return Lines(console), lambda: console.file.getvalue().splitlines()


def test_a_stage_begins_and_ends_with_a_line(said, clock):
    show, lines = said
    for done in range(4):
        show("questions", done, 3)
        clock(1)
    assert lines() == ["questions: 0 of 3", "questions: 3 of 3, 3 s elapsed"]


def test_long_work_says_every_half_minute_what_is_left(said, clock):
    show, lines = said
    for done in range(11):
        show("a stage with a name longer than the terminal is wide", done, 10)
        clock(20)
    told = [line.partition(": ")[2] for line in lines()]
    assert told == [
        "0 of 10",
        "2 of 10, 40 s elapsed, about 2 min 40 s left",
        "4 of 10, 1 min 20 s elapsed, about 2 min 00 s left",
        "6 of 10, 2 min 00 s elapsed, about 1 min 20 s left",
        "8 of 10, 2 min 40 s elapsed, about 40 s left",
        "10 of 10, 3 min 20 s elapsed",
    ]


def test_a_resumed_run_is_not_taken_for_a_fast_one(said, clock):
    show, lines = said
    show("steps", 900, 1000)
    clock(60)
    show("steps", 901, 1000)
    assert lines() == ["steps: 900 of 1000", "steps: 901 of 1000, 1 min 00 s elapsed, about 1 h 39 min left"]


def test_without_an_end_there_is_no_estimate(said, clock):
    show, lines = said
    show("cutting de", 0, 0)
    clock(31)
    show("cutting de", 500, 0)
    assert lines() == ["cutting de:", "cutting de: 500, 31 s elapsed"]


def test_what_is_over_is_said_once_and_stages_may_take_turns(said, clock):
    show, lines = said
    for done in (1, 2, 2, 2):
        show("[arm, of a study]", done, 2)
        show("all", 0, 9)
        clock(1)
    assert lines() == ["[arm, of a study]: 1 of 2", "all: 0 of 9", "[arm, of a study]: 2 of 2, 1 s elapsed"]


def test_a_file_gets_lines():
    console = Console(file=io.StringIO())
    with shown_progress(console) as show:
        show("questions", 0, 2)
        show("questions", 2, 2)
    assert console.file.getvalue().splitlines()[0] == "questions: 0 of 2"


def test_a_terminal_gets_a_bar_that_goes():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False, color_system=None)
    with shown_progress(console) as show:
        show("[arm] of a study", 1, 4)
        show("cutting", 7, 0)
        show("[arm] of a study", 3, 4)
    drawn = console.file.getvalue()
    assert "[arm] of a study" in drawn  # no markup of rich's
    assert "3/4" in drawn
    assert re.search(r"7/\?", drawn)
    assert "\x1b[2K" in drawn  # cleared at the end
    assert "3 of 4" not in drawn


def test_work_of_more_than_ten_minutes_is_told_once_with_what_makes_it_less(clock):
    console = Console(file=io.StringIO(), width=200)
    with shown_progress(console, shorter="--limit 4") as show:
        for done in range(4):
            show("prompts", done, 100)
            show("few", done, 3)
            clock(15)
    told = [line for line in console.file.getvalue().splitlines() if "will take" in line]
    assert told == [
        "prompts will take about 24 min 30 s more; for less, Ctrl-C and add --limit 4 (a run that is stopped goes on "
        "by the same command)"
    ]


def test_fast_work_says_how_fast(said, clock):
    show, lines = said
    show("training, bytes", 0, 100_000)
    clock(40)
    show("training, bytes", 50_000, 100_000)
    assert lines()[-1] == "training, bytes: 50000 of 100000, 40 s elapsed, 1,250 a second, about 40 s left"
