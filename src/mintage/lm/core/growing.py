"""Words of a text that grows: a word is over as soon as a rule, run on the bytes so far, begins another one behind it.

What was cut is never taken back, so words follow from the bytes before them. Where a character takes several bytes, its
first ones do not tell yet whether it begins a word: *late* bytes belong to the open word when they are read, and to a
later one from the byte on that decides. `Layout` puts both readings of them behind one another, so that a whole text is
read at once and no byte is predicted from more than the bytes before it.

The words are those of the rule on the whole text, but where the rule joins what it had parted (a fraction slash between
two digits).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mintage.lm.core.cuts import Cut

__all__ = ["Grown", "Layout", "Over", "ends_of_words", "grow"]

Over = Callable[[bytes], tuple[int, ...]]
"""Lengths of the words that are over at the end of some bytes, which begin with a word."""


def ends_of_words(cut: Cut) -> Over:
    """Make the rule that says when words are over from one that cuts a text."""

    @lru_cache(maxsize=1 << 16)
    def over(data: bytes) -> tuple[int, ...]:
        if data[-1] > 127 and codecs.utf_8_decode(data, "surrogateescape", False)[1] < len(data):
            return ()  # inside a character
        return tuple(cut(data)[:-1])

    return over


@dataclass(frozen=True)
class Grown:
    """Words of a text.

    Parameters
    ----------
    lengths
        Bytes of the words that are over.
    known
        How many are over behind each byte.
    """

    lengths: list[int]
    known: list[int]

    @property
    def word(self) -> Int[np.ndarray, " bytes"]:
        """The word of every byte, as it is in the end; the open one is behind those that are over."""
        rest = len(self.known) - sum(self.lengths)
        return np.repeat(np.arange(len(self.lengths) + 1), [*self.lengths, rest])


def grow(over: Over, text: bytes) -> Grown:
    """Cut a text as it grows."""
    lengths, known, begun = [], [], 0
    for end in range(1, len(text) + 1):
        for length in over(text[begun:end]):
            lengths.append(length)
            begun += length
        known.append(len(lengths))
    return Grown(lengths, known)


@dataclass(frozen=True)
class Layout:
    """Texts as rows that are read at once; place 0 of a text is its start, place *n* its byte *n*, counted from 1.

    Late places stand in a row twice: first as they were read, then as they are for what comes behind.

    Parameters
    ----------
    place
        Of a text, shape (rows, longest); rows are filled at their ends.
    word
        What is seen of the context there: the number of words that are over.
    late
        First place of the run that is read as it was then, else -1; only places of the same run see it.
    last
        Where in its row each place stands last before the next one is predicted, shape (rows, places).
    """

    place: Int[Tensor, "rows longest"]
    word: Int[Tensor, "rows longest"]
    late: Int[Tensor, "rows longest"]
    last: Int[Tensor, "rows places"]

    @classmethod
    def of(cls, texts: Sequence[Grown], places: int, device: torch.device | str = "cpu") -> Layout:
        """Lay out texts; each has a start and the bytes that `grow` saw, no more than `places` in all."""
        rows = [_row(text) for text in texts]
        longest = max((len(row[0]) for row in rows), default=0)
        found = []
        for number, size, filling in ((0, longest, 0), (1, longest, 0), (2, longest, -1), (3, places, 0)):
            whole = np.full((len(rows), size), filling, np.int64)
            for row, held in zip(whole, rows, strict=True):
                row[: len(held[number])] = held[number]
            found.append(torch.from_numpy(whole).to(device))
        return cls(*found)


def _row(text: Grown) -> tuple[np.ndarray, ...]:
    word, known = (np.concatenate([[0], values]).astype(np.int64) for values in (text.word, text.known))
    index = np.arange(len(word))
    late = known < word
    if not late.any():
        return index, word, np.full_like(index, -1), index
    run = np.maximum.accumulate(np.where(late & ~np.roll(late, 1), index, -1))  # place 0 is never late
    anchor = np.concatenate([np.where(late, run, index), run[late]])
    order = np.lexsort((np.concatenate([index, index[late]]), np.arange(len(anchor)) < len(index), anchor))
    stands = order.argsort()
    last = stands[: len(index)].copy()
    last[late] = stands[len(index) :]
    return (
        np.concatenate([index, index[late]])[order],
        np.concatenate([word, known[late]])[order],
        np.concatenate([np.full_like(index, -1), run[late]])[order],
        last,
    )
