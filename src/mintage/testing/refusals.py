"""Laws about refusals: a mistake is told in one line, and a method serves something of what it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mintage.errors import UserError

__all__ = ["refusal", "refused", "served"]

T = TypeVar("T")


def refusal(call: Callable[[], Any]) -> str | None:
    """Return the one line by which a call is refused, or None if it went through."""
    try:
        call()
    except UserError as error:
        line = str(error)
        assert "\n" not in line, f"more than one line: {line!r}"
        return line
    return None


def refused(*calls: Callable[[], Any]) -> list[str]:
    """Return the line by which each call is refused; each must be."""
    lines = [refusal(call) for call in calls]
    for number, line in enumerate(lines):
        assert line is not None, f"call {number} should have been refused"
    return [line for line in lines if line is not None]


def served(attach: Callable[[T], Any], models: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Yield the models, by name, that `attach` does not refuse in one line; at least one."""
    found = 0
    for name, model in models:
        if refusal(lambda model=model: attach(model)) is None:
            found += 1
            yield name, model
    assert found, "the method serves none of the models"
