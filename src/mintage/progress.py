"""How long work says where it is: one callback, called with the stage, what is done of it and how much there is.

Not here: bars and lines (`mintage.cli.progress`).
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Note", "Progress", "silent", "unheard"]

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, of)``; `of` is 0 while nobody knows."""


def silent(stage: str, done: int, of: int) -> None:
    """Say nothing."""


Note = Callable[[str], None]
"""Told, in one line, what whoever waits should know."""


def unheard(line: str) -> None:
    """Tell nobody."""
