"""Words of a batch, packed: where they begin and end in bytes, and where they stand behind one another.

Every word is `lead` places (a marker, or vectors from a model of words) followed by one place for each of its bytes;
all words of a batch stand behind one another without padding. A word's last place predicts its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Group", "Words"]


_BOUNDS = (8, 16)  # places of words that are rows together


class Group(NamedTuple):
    """Words as rows.

    Parameters
    ----------
    rows
        Places of each word; behind its last anything.
    valid
        Which of them are the word's.
    """

    rows: Int[Tensor, "words longest"]
    valid: Bool[Tensor, "words longest"]


@dataclass(frozen=True)
class Words:
    """Where words are.

    Parameters
    ----------
    counts
        Words of each row, shape (batch,).
    lengths
        Bytes of each word, row after row, shape (words,); every word has some.
    lead
        Places before a word's bytes.
    """

    counts: Int[Tensor, " batch"]
    lengths: Int[Tensor, " words"]
    lead: int = 1

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], lead: int = 1, device: torch.device | str = "cpu") -> Words:
        """Make it from the bytes of every word of every row."""
        counts = torch.tensor([len(row) for row in rows], dtype=torch.long, device=device)
        lengths = torch.tensor([n for row in rows for n in row], dtype=torch.long, device=device)
        return cls(counts, lengths, lead)

    @cached_property
    def ends(self) -> Int[Tensor, " words"]:
        """Place behind each word's last."""
        return (self.lengths + self.lead).cumsum(0)

    @cached_property
    def starts(self) -> Int[Tensor, " words"]:
        """Each word's first place."""
        return self.ends - self.lengths - self.lead

    @cached_property
    def word(self) -> Int[Tensor, " places"]:
        """The word that a place belongs to."""
        index = torch.arange(len(self.lengths), device=self.lengths.device)
        return index.repeat_interleave(self.lengths + self.lead)

    @cached_property
    def places(self) -> Int[Tensor, " places"]:
        """Position of every place inside its word, from 0."""
        return torch.arange(len(self.word), device=self.word.device) - self.starts[self.word]

    @cached_property
    def is_byte(self) -> Bool[Tensor, " places"]:
        """Whether a place is a byte; these are the batch's bytes in order."""
        return self.places >= self.lead

    @cached_property
    def groups(self) -> list[Group]:
        """Words of about the same length, as rows: short ones are not filled up to the longest."""
        found, sizes = [], self.lengths + self.lead
        for least, most in pairwise((0, *_BOUNDS, 1 << 62)):
            mine = torch.nonzero((sizes > least) & (sizes <= most))[:, 0]
            if len(mine):
                longest = torch.arange(int(sizes[mine].max()), device=sizes.device)
                valid = longest < sizes[mine][:, None]
                rows = (self.starts[mine][:, None] + longest).clamp(max=len(self.word) - 1)
                found.append(Group(rows, valid))
        return found

    @cached_property
    def order(self) -> Int[Tensor, " places"]:
        """Where each place stands among those of all groups, behind one another."""
        return torch.cat([group.rows[group.valid] for group in self.groups]).argsort()

    @cached_property
    def row(self) -> Int[Tensor, " words"]:
        """The row of the batch that a word is in."""
        return torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)

    @cached_property
    def number(self) -> Int[Tensor, " words"]:
        """A word's number in its row, from 0."""
        first = self.counts.cumsum(0) - self.counts
        return torch.arange(len(self.row), device=self.row.device) - first[self.row]

    @cached_property
    def is_last(self) -> Bool[Tensor, " words"]:
        """Whether a word is its row's last: it may go on behind the text, so its end is not predicted."""
        return self.number + 1 == self.counts[self.row]
