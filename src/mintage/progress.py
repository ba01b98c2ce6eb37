"""How long work says where it is: one callback, called with the stage, what is done of it and how much there is.

Not here: bars and lines (`mintage.cli.progress`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Note", "Progress", "quiet", "silent", "unheard"]

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, of)``; `of` is 0 while nobody knows."""


def silent(stage: str, done: int, of: int) -> None:
    """Say nothing."""


Note = Callable[[str], None]
"""Told, in one line, what whoever waits should know."""


def unheard(line: str) -> None:
    """Tell nobody."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of our output."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
