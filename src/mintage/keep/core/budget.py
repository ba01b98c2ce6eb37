"""A budget of cached entries, stated as people think of it: tokens, a share of what was read, or bytes.

Not here: who enforces it (`mintage.keep.core.evict`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mintage.errors import UserError

__all__ = ["Budget"]

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
