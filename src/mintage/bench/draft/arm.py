"""A decoder under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mintage.draft import Drafter, Stats

__all__ = ["Arm", "Decode"]

Decode = Callable[[Tensor, float, int, int], tuple[Tensor, Stats]]
"""``(ids, temperature, max_new_tokens, seed) -> (emitted tokens, what they cost)``."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A decoder under test.

    Parameters
    ----------
    name
        What rows call it.
    decode
        Answers a prompt; a hot drafter keeps what it learns.
    fresh
        Makes a decoder of the same kind that has learned nothing, for what is measured aside.
    drafter
        What a hot arm keeps from prompt to prompt; None for cold arms and other people's decoders.
    draft_model
        The model that it drafts with, if any.
    line, nodes
        Line and point of the curve over numbers of nodes that it belongs to.
    note
        What a reader of its rows must know; empty for arms that run the same model in the same arithmetic.
    """

    name: str
    decode: Decode
    fresh: Callable[[], Decode]
    drafter: Drafter | None = None
    draft_model: Any = None
    line: str = ""
    nodes: int | None = None
    note: str = ""

    @property
    def learners(self) -> list[Any]:
        """What the drafter and its parts keep across requests: those that can save and load it."""
        parts = (self.drafter, *getattr(self.drafter, "drafters", ()))
        return [part for part in parts if hasattr(part, "save") and hasattr(part, "load")]
