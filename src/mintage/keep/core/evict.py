"""Policies that hold fewer entries than tokens: they score entries and drop the lowest, within a budget.

A budget is stated as people think of it: entries, a share of what was read, or bytes of the whole cache.
After every forward at most `budget` entries are held. A decoding step makes room first, so that the budget holds while
it attends, too; `every` entries are dropped at a time, because dropping moves the others.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.contract import Geometry, Policy, Step
from mintage.keep.core.storage import KeptLayer
from mintage.options import option

__all__ = ["Budget", "Evictor", "highest", "padding", "protect"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Budget:
    """How much of the context may stay, per layer and key-value head.

    Parameters
    ----------
    amount
        Number of entries, share of the tokens read so far, or bytes of the whole cache.
    unit
        Which of the three.
    """

    amount: float
    unit: Literal["tokens", "share", "bytes"]

    @classmethod
    def parse(cls, value: int | float | str) -> Budget:
        """Read ``256`` (entries), ``0.25`` (share) or ``"4MB"``, ``"512KiB"`` (bytes of the whole cache).

        Raises
        ------
        UserError
            None of these, or not above zero.
        """
        if isinstance(value, str):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b\s*", value.lower())
            if not match:
                raise UserError(f"budget={value!r} is no budget; pass entries (256), a share (0.25) or bytes ('4MB')")
            amount = float(match[1]) * _UNITS[match[2] or ""]
            unit = "bytes"
        else:
            amount, unit = value, "tokens" if isinstance(value, int) else "share"
        if not amount > 0:
            raise UserError(f"budget={value!r} keeps nothing; pass entries (256), a share (0.25) or bytes ('4MB')")
        if unit == "share" and amount > 1:
            raise UserError(f"budget={value!r} is no share in (0, 1]; pass a whole number for entries, e.g. 256")
        return cls(float(amount), unit)

    def entries(self, seen: int, *, entry_bytes: int, fixed_bytes: int, layers: int) -> int:
        """Return the entries that each head of a layer may hold once `seen` tokens are read.

        Parameters
        ----------
        seen
            Tokens read so far.
        entry_bytes
            Bytes of one entry in all heads and sequences of one layer.
        fixed_bytes
            Bytes that one layer holds besides its entries.
        layers
            Layers that share a budget of bytes.
        """
        if self.unit == "tokens":
            return int(self.amount)
        if self.unit == "share":
            return int(self.amount * seen)
        return int((self.amount / layers - fixed_bytes) // entry_bytes)

    def __str__(self) -> str:
        """Write the budget as `parse` reads it."""
        if self.unit == "bytes":
            return f"{self.amount / 10**6:g}MB"
        return f"{self.amount:g}" if self.unit == "share" else f"{int(self.amount)}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evictor(Policy):
    """A policy with a budget."""

    budget: int | float | str = option(
        256, "Entries per layer and head (256), share of the tokens read (0.25), or bytes of the whole cache ('4MB')."
    )
    window: int = option(32, "Newest tokens, which are always kept.", least=1)
    every: int = option(
        8,
        "Entries dropped at a time in decoding, of a small budget fewer; 1 is fullest, more faster.",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Budget.parse(self.budget)

    def check(self, geometry: Geometry) -> None:
        """Refuse a budget of entries that has no room for more than the window."""
        budget = Budget.parse(self.budget)
        if budget.unit == "tokens" and budget.amount < self.smallest:
            raise UserError(
                f"budget={self.budget} is below the {self.smallest} entries that are always kept; "
                f"pass a larger budget or a smaller window"
            )

    @property
    def smallest(self) -> int:
        """Entries that are always kept, and one more."""
        return self.window + 1

    def allowed(self, layer: KeptLayer, seen: int) -> int:
        """Entries that a row of `layer` may hold once `seen` of its tokens are read, padding not counted."""
        budget = Budget.parse(self.budget)
        if "key" not in layer:
            return seen
        allowed = budget.entries(
            seen, entry_bytes=layer.entry_bytes, fixed_bytes=layer.fixed_bytes, layers=layer.geometry.layers
        )
        if allowed < self.smallest and budget.unit == "bytes":
            least = (self.smallest * layer.entry_bytes + layer.fixed_bytes) * layer.geometry.layers
            raise UserError(
                f"budget={self.budget} holds {max(allowed, 0)} entries per head of this batch, and {self.smallest} "
                f"are always kept; pass at least '{-(-least // 1000)}kB'"
            )
        return max(allowed, min(self.smallest, seen))

    def at(self, entries: int) -> Evictor:
        """Return this policy with a budget of `entries`, and a window of half of them at most."""
        return replace(self, budget=entries, window=max(1, min(self.window, entries // 2)))

    def unbounded(self) -> Evictor:
        """Return this policy with a budget of all tokens."""
        return replace(self, budget=1.0)

    @property
    def crops_exactly(self) -> bool:
        """Only where nothing is ever dropped: what a rejected token drove out does not come back."""
        budget = Budget.parse(self.budget)
        return budget.unit == "share" and budget.amount == 1

    def ceiling(self, layer: KeptLayer) -> int | None:
        """Allocate no more than the budget once something was dropped."""
        if layer.complete:
            return None
        first = 0 if layer.start is None else int(layer.start.min())
        return self.allowed(layer, layer.seen - first)

    def store(
        self,
        layer: KeptLayer,
        key: Float[Tensor, "batch groups new dim"],
        value: Float[Tensor, "batch groups new width"],
    ) -> None:
        """Make room for a decoded token, then take it in."""
        new = key.shape[2]
        if layer.entries and new == 1:
            self.fit(layer, new)
        self.take(layer, key, value)

    def fit(self, layer: KeptLayer, new: int = 0) -> None:
        """Shrink to the budget, with room for `new` more; rows behind padding each to what they may hold alone."""
        if self.crops_exactly:
            return
        if layer.start is None and not layer.ragged:
            if (target := self._target(layer, layer.seen, layer.entries, new)) is not None:
                self.shrink(layer, target)
            return
        empty = layer.empty().tolist()
        start = [0] * len(empty) if layer.start is None else layer.start.tolist()
        targets = [
            self._target(layer, layer.seen - first, layer.entries - gone, new)
            for first, gone in zip(start, empty, strict=True)
        ]
        most = max(self.allowed(layer, layer.seen + new - first) for first in start)
        if all(target is None for target in targets) and layer.entries + new <= most:
            return
        rows = [layer.row(index, gone) for index, gone in enumerate(empty)]
        for row, target in zip(rows, targets, strict=True):
            if target is not None:
                self.shrink(row, target)
        layer.join(rows)

    def _target(self, layer: KeptLayer, read: int, held: int, new: int) -> int | None:
        """Entries to shrink to where `held` of `read` real tokens and `new` more are too many; None where not."""
        allowed = self.allowed(layer, read + new)
        if held + new <= allowed:
            return None
        return max(allowed - self.every, (allowed + self.smallest - 1) // 2) if new else allowed

    def take(self, layer: KeptLayer, key: Tensor, value: Tensor) -> None:
        """Append new tokens with whatever fields the method keeps; here keys and values only."""
        layer.append(key=key, value=value)

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries width"]:
        """Attend to all that is held."""
        layer.reads = layer["key"].numel() + layer["value"].numel()
        if layer.complete:
            return step.dense()
        return step.attend_to_all(layer, self.bias(layer))

    def bias(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"] | None:
        """Return what is added to the scores of entries; nothing unless a method merges."""
        return None

    def settle(self, layer: KeptLayer, step: Step) -> None:
        """Gather evidence, then shrink to the budget."""
        self.observe(layer, step)
        self.fit(layer)

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Update the evidence that `importance` reads, from the queries just answered."""

    @abstractmethod
    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Score every entry held; the lowest are dropped first, the newer one where scores are equal."""

    def shrink(self, layer: KeptLayer, target: int) -> None:
        """Reduce `layer` to `target` entries: the window, and the most important others."""
        score = protect(layer, self.importance(layer), self.window)
        layer.keep(highest(score, target))


def protect(
    layer: KeptLayer, score: Float[Tensor, "batch groups entries"], window: int
) -> Float[Tensor, "batch groups entries"]:
    """Set the newest `window` tokens' scores to infinity and padding's to minus infinity."""
    positions = layer.positions
    score = score.masked_fill(positions >= layer.seen - window, torch.inf)
    pads = padding(layer)
    return score if pads is None else score.masked_fill(pads, -torch.inf)


def padding(layer: KeptLayer) -> Bool[Tensor, "#batch #groups entries"] | None:
    """Which entries are padding, or empty; None where there are none."""
    if layer.start is None:
        return layer.positions < 0 if layer.ragged else None
    return layer.positions < layer.start[:, None, None]


def highest(score: Float[Tensor, "batch groups entries"], number: int) -> Int[Tensor, "batch groups number"]:
    """Indices of the `number` highest scores, ascending; of equal scores the older entry's."""
    return score.argsort(dim=-1, descending=True, stable=True)[..., :number].sort(-1).values
