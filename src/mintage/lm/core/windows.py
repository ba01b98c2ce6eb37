"""Texts as windows of bytes: cut at fixed places, the same ones in the same order for every model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mintage.errors import UserError

__all__ = ["Windows", "byte_windows", "drawn", "hold_out"]

HELD_OUT = 50
"""Every so many-th window is not trained on."""


class Windows(NamedTuple):
    """Windows to learn from, and some of the same texts to measure on."""

    train: UInt8[np.ndarray, "windows size"]
    held_out: UInt8[np.ndarray, "windows size"]

    def batch(self, index: int, rows: int, seed: int) -> Int[Tensor, "rows size"]:
        """Return batch number `index`; every epoch has its own order, which follows from the seed."""
        return torch.from_numpy(self.train[drawn(len(self.train), index, rows, seed)].astype(np.int64))


def drawn(count: int, index: int, rows: int, seed: int) -> Int[np.ndarray, " rows"]:
    """Return which of `count` windows are in batch number `index`; every epoch has an order of its own."""
    places = np.arange(index * rows, (index + 1) * rows)
    chosen = np.empty(rows, np.int64)
    for epoch in np.unique(places // count).tolist():
        order = np.random.default_rng([seed, epoch]).permutation(count)
        mine = places // count == epoch
        chosen[mine] = order[places[mine] % count]
    return chosen


def byte_windows(texts: Iterable[str], size: int) -> UInt8[np.ndarray, "windows size"]:
    """Join texts and cut them into windows of `size` bytes; what is left at the end is dropped.

    Raises
    ------
    UserError
        There is not one window.
    """
    data = b"".join(text.encode("utf-8", "surrogateescape") for text in texts)
    if len(data) < size:
        raise UserError(f"the texts have {len(data)} bytes, less than one window of {size}; pass more text")
    return np.frombuffer(data, np.uint8)[: len(data) // size * size].reshape(-1, size)


def hold_out(windows: UInt8[np.ndarray, "windows size"]) -> Windows:
    """Hold out every fiftieth window (the only one is in both parts)."""
    held = np.arange(len(windows)) % HELD_OUT == HELD_OUT // 2
    return Windows(windows[~held], windows[held] if held.any() else windows[-1:])
