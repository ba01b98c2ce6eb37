"""How the command line shows long work: a bar per stage on a terminal, else lines with elapsed and estimated time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from mintage.progress import Progress

__all__ = ["shown_progress", "told"]

_EVERY = 30.0  # seconds between two lines of one stage
_WATCHED, _LONG = 20.0, 600.0  # seconds of a stage before its length is guessed, and from which length on it is told


def told(line: str) -> None:
    """Tell what a user should know, in one line on standard error; a `mintage.progress.Note`."""
    Console(stderr=True).print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def shown_progress(console: Console | None = None, *, shorter: str = "") -> Iterator[Progress]:
    """Yield a `Progress` that is drawn on standard error; bars go when the work is over.

    Of a stage that will take more than ten minutes it is told how long, and that the options `shorter` make it less.
    """
    console = console or Console(stderr=True)
    warned = Estimate(console, shorter)
    if not console.is_terminal:
        lines = Lines(console)

        def write(stage: str, done: int, of: int) -> None:
            lines(stage, done, of)
            warned(stage, done, of)

        yield write
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, _Pace(), TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=of or None)
            bars.update(tasks[stage], completed=done, total=of or None)
            warned(stage, done, of)

        yield show


class Estimate:
    """Says once of every stage, when its pace is known, if it will take more than ten minutes."""

    def __init__(self, console: Console, shorter: str) -> None:
        self._console, self._shorter = console, shorter
        self._began: dict[str, tuple[float, int]] = {}
        self._judged: set[str] = set()

    def __call__(self, stage: str, done: int, of: int) -> None:
        """See `mintage.progress.Progress`."""
        now = time.monotonic()
        began, before = self._began.setdefault(stage, (now, done))
        if stage in self._judged or not before < done < of or now - began < _WATCHED:
            return
        self._judged.add(stage)
        left = (now - began) * (of - done) / (done - before)
        if left < _LONG:
            return
        less = f"; for less, Ctrl-C and add {self._shorter}" if self._shorter else ""
        line = f"{stage} will take about {_clock(left)} more{less} (a run that is stopped goes on by the same command)"
        self._console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


class Lines:
    """Progress as lines: when a stage begins and ends, and in between at most every half minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began: dict[str, tuple[float, int]] = {}  # stage: when, and what was done by then (a resumed run)
        self._said: dict[str, float] = {}
        self._over: set[str] = set()

    def __call__(self, stage: str, done: int, of: int) -> None:
        """See `mintage.progress.Progress`."""
        now = time.monotonic()
        first = stage not in self._began
        began, before = self._began.setdefault(stage, (now, done))
        over = bool(of) and done >= of
        if stage in self._over or not (first or over or now - self._said[stage] >= _EVERY):
            return
        self._said[stage] = now
        if over:
            self._over.add(stage)
        count = f" {done} of {of}" if of else f" {done}" if done else ""
        told = "" if first else f", {_clock(now - began)} elapsed"
        if of and before < done < of:
            speed = (done - before) / (now - began)
            told += f"{_rate(speed)}, about {_clock((of - done) / speed)} left"
        self._console.print(f"{stage}:{count}{told}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _rate(speed: float) -> str:
    """How much is done in a second, where that says something."""
    return f", {speed:,.0f} a second" if speed >= 2 else ""


class _Pace(ProgressColumn):
    """How fast a stage goes."""

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text(_rate(task.speed or 0.0).lstrip(", "), style="progress.data.speed")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
