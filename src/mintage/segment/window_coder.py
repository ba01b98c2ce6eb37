"""The window coder of Equal-Info: an arithmetic coder that starts afresh whenever a window of bits is full.

The paper leaves open how a window ends. Here the top point of the interval is always kept free as a stop mark. This
makes the numbers of a window and the strings that fit into one a one-to-one map, and the set of these strings closed
under taking prefixes; so coding a text is *greedy longest match* over them, whatever the model.

Not here: what the numbers are as tokens (`mintage.segment.equal_info`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mintage.segment.core.byte_models import Bounds, ByteModel

__all__ = ["code_windows", "decode_windows", "total_frequency", "window_strings"]

_CHUNK = 2048  # windows decoded, or nodes expanded, at once


def total_frequency(window_bits: int) -> int:
    """Return what frequencies sum to: little enough that every symbol fits into an empty window."""
    return 2 ** min(16, window_bits - 1)


def code_windows(
    bounds: Bounds, start: int, stop: int, window_bits: int, total: int | None = None
) -> tuple[list[int], list[int]]:
    """Code symbols `start` to `stop` into windows, in exact integers.

    An empty window owns the numbers 0 to ``2**window_bits - 1``. A symbol whose cumulative frequencies are `a` to `b`
    takes ``low + a n // total`` to ``low + b n // total - 1`` of the ``n = high - low`` numbers below the top one. The
    window ends before a symbol that would take none, and after one that takes one; its code is its top number.

    Parameters
    ----------
    bounds
        ``bounds(begin, position)``: cumulative frequencies below and up to the symbol at `position`, in a window that
        begun at `begin`.
    start, stop
        Positions.
    window_bits
        Size of a window; any.
    total
        What frequencies sum to, a power of two; default `total_frequency`.

    Returns
    -------
    codes, ends
        One number per window, and the position after its last symbol.
    """
    shift = (total or total_frequency(window_bits)).bit_length() - 1
    top = (1 << window_bits) - 1
    codes, ends = [], []
    begin = start
    while begin < stop:
        low, high, position = 0, top, begin
        while low < high and position < stop:
            below, above = bounds(begin, position)
            n = high - low
            edge, after = low + (below * n >> shift), low + (above * n >> shift)
            if edge == after:
                break
            low, high = edge, after - 1
            position += 1
        codes.append(high)
        ends.append(position)
        begin = position
    return codes, ends


def decode_windows(
    codes: Sequence[int] | np.ndarray, model: ByteModel, window_bits: int
) -> tuple[Int[np.ndarray, " symbols"], Int[np.ndarray, " windows"]]:
    """Decode windows side by side: each needs nothing but itself.

    Returns
    -------
    symbols, lengths
        The symbols of all windows, end to end, and how many are in each.
    """
    pieces = [_decode_chunk(codes[i : i + _CHUNK], model, window_bits) for i in range(0, len(codes), _CHUNK)]
    if not pieces:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    return np.concatenate([s for s, _ in pieces]), np.concatenate([n for _, n in pieces])


def _decode_chunk(
    codes: Sequence[int] | np.ndarray, model: ByteModel, window_bits: int
) -> tuple[Int[np.ndarray, " symbols"], Int[np.ndarray, " windows"]]:
    shift, top = model.total.bit_length() - 1, (1 << window_bits) - 1
    exact: Any = np.int64 if window_bits + shift < 63 else object  # beyond 63 bits in Python's own integers
    code: Any = np.array([int(c) for c in codes], dtype=exact)
    low: Any = np.zeros(len(code), dtype=exact)
    high: Any = np.full(len(code), top, dtype=exact)
    window = np.flatnonzero((code != high).astype(bool))
    states = model.start(len(window))
    found: list[np.ndarray] = []
    where: list[np.ndarray] = []
    while len(window):
        a, n = low[window], high[window] - low[window]
        # the last symbol whose edge, low + C n >> shift, is not above the code
        reach = (((code[window] - a + 1) << shift) - 1) // n
        edges = model.cumulative(states)
        symbols = (edges[:, 1:] <= reach.astype(np.int64)[:, None]).sum(1)
        rows = np.arange(len(window))
        low[window] = a + (edges[rows, symbols].astype(exact) * n >> shift)
        high[window] = a + (edges[rows, symbols + 1].astype(exact) * n >> shift) - 1
        found.append(symbols)
        where.append(window)
        going = ((low[window] < high[window]) & (code[window] != high[window])).astype(bool)
        states, window = model.advance(states[going], symbols[going]), window[going]
    if not found:
        return np.empty(0, dtype=np.int64), np.zeros(len(code), dtype=np.int64)
    windows = np.concatenate(where)
    lengths = np.bincount(windows, minlength=len(code))
    return np.concatenate(found)[np.argsort(windows, kind="stable")], lengths


def window_strings(model: ByteModel, window_bits: int) -> list[bytes]:
    """Work out the string of every code, level by level; that of the last code is empty.

    Every code is the top number of exactly one reachable interval, and every interval of exactly one string, so no two
    codes share one; and dropping the last byte of a string gives the interval around it.
    """
    shift, top = model.total.bit_length() - 1, (1 << window_bits) - 1
    strings = [b""] * (top + 1)
    low, high, states = np.zeros(1, dtype=np.int64), np.full(1, top), model.start(1)
    while len(low):
        levels = []
        for first in range(0, len(low), _CHUNK):
            rows = slice(first, first + _CHUNK)
            n = (high[rows] - low[rows])[:, None]
            edges = low[rows][:, None] + (model.cumulative(states[rows]) * n >> shift)
            parent, symbol = np.nonzero(edges[:, 1:] > edges[:, :-1])
            below, above = edges[parent, symbol], edges[parent, symbol + 1] - 1
            for code, of, byte in zip(above.tolist(), high[rows][parent].tolist(), symbol.tolist(), strict=True):
                strings[code] = strings[of] + bytes((byte,))
            inner = below < above
            after = model.advance(states[rows][parent[inner]], symbol[inner])
            levels.append((below[inner], above[inner], after))
        low, high, states = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    return strings
