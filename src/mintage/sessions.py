"""What is attached to a model for the length of a ``with``, so that one job finds another's without importing it.

A cache policy (`mintage.keep`) attaches itself; who decodes (`mintage.draft`) asks.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

__all__ = ["Session", "session_of", "sessions"]


@runtime_checkable
class Session(Protocol):
    """A cache policy on a model."""

    policy: Any
    """Its ``crops_exactly`` tells whether tokens can be taken back as if they had never come."""

    def new_cache(self) -> Any:
        """Make an empty cache. The forward after ``cache.drafted = n`` takes its last n tokens for decoding steps."""


sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
"""Sessions by model; whoever attaches writes here."""


def session_of(model: Any) -> Session | None:
    """Return what is attached to a model."""
    return sessions.get(model)
