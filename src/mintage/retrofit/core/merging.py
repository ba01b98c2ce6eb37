"""Merge subwords within a batch: byte-pair encoding over tokens, started anew for every batch.

Count adjacent pairs, join the most frequent one everywhere, repeat; a boundary sets what may be joined. Section 3.1
of *Retrofitting Large Language Models with Dynamic Tokenization* (arXiv 2411.18553). Where the authors count all pairs
again before every merge, here the pairs know their places.

Not here: what becomes of the merged tokens (`mintage.retrofit.dynamic_tokens`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from tokenizers import pre_tokenizers

from mintage.errors import UserError
from mintage.options import check_literals

__all__ = [
    "Boundary",
    "MergeRule",
    "Merging",
    "Symbols",
    "dynamic_merge",
    "pair_rule",
]

Boundary = Literal["pretokens", "word", "word_hyphen", "sentence"]
"""What a merged token may not cross."""

Pair = tuple[int, int]
MergeRule = Callable[[bytes, bytes], bool]

_SPACES = b" \t\n"


# -- merging -----------------------------------------------------------------------------------------------------------


class Merging:
    """The adjacent pairs of a batch with their places, kept up to date from merge to merge.

    Every pair knows where it stands and where it stands first, so that a merge costs as much as it replaces, not as
    much as the batch is long.

    Parameters
    ----------
    sequences
        Symbols.
    join
        The symbol that two symbols become, or None where they may not be joined.
    weights
        How often each sequence counts; default once.

    Attributes
    ----------
    merges
        Pairs joined so far, in order.
    lengths
        Total length of all sequences before the first merge and after each.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        join: Callable[[int, int], int | None],
        weights: Sequence[int] | None = None,
    ) -> None:
        self.join = join
        self._start = [symbol for sequence in sequences for symbol in sequence]
        self._lengths = [len(sequence) for sequence in sequences]
        self._symbols = list(self._start)
        count = len(self._symbols)
        self._left, self._right = list(range(-1, count - 1)), list(range(1, count + 1))
        place = 0
        for length in self._lengths:
            if length:
                self._left[place], self._right[place + length - 1] = -1, -1
            place += length
        self._weights = None if weights is None else np.repeat(weights, self._lengths).tolist()
        self._places: dict[Pair, set[int]] = {}
        self._counts: dict[Pair, int] = {}
        self._first: dict[Pair, list[int]] = {}  # heaps; entries that are no places any more are dropped when met
        self._queue: list[tuple[int, int, Pair]] = []  # likewise: minus the count, first place
        self._touched: set[Pair] = set()
        for place in range(count):
            self._add(place)
        self._settle()
        self.merges: list[Pair] = []
        self.lengths = [count]
        self._events: list[tuple[int, int, int]] = []  # place, its new symbol, the place that went into it

    def best(self) -> Pair | None:
        """Return the most frequent pair, the first seen of equals; None if no pair may be joined."""
        while self._queue:
            count, first, pair = self._queue[0]
            if pair in self._places and self._counts[pair] == -count and self._first_of(pair) == first:
                return pair
            heapq.heappop(self._queue)
        return None

    def pairs(self) -> list[Pair]:
        """Return the pairs that may be joined."""
        return list(self._places)

    def merge(self, pair: Pair) -> int:
        """Join a pair everywhere, from left to right, and return in how many places."""
        symbol, before = self.join(*pair), len(self._events)
        if symbol is None:
            raise UserError(f"the pair {pair} may not be joined; pass one of pairs()")
        for place in sorted(self._places.get(pair, ())):
            if place not in self._places.get(pair, ()):  # in "aaa", the second pair went with the first
                continue
            right = self._right[place]
            left, after = self._left[place], self._right[right]
            for changed in (left, place, right):
                self._drop(changed)
            self._symbols[place], self._right[place] = symbol, after
            if after >= 0:
                self._left[after] = place
            self._add(left)
            self._add(place)
            self._events.append((place, symbol, right))
        self._settle()
        self.merges.append(pair)
        self.lengths.append(self.lengths[0] - len(self._events))
        return len(self._events) - before

    def run(self, merges: int | None = None) -> Merging:
        """Join the most frequent pair until this was done `merges` times or no pair is left; return self."""
        while (merges is None or len(self.merges) < merges) and (pair := self.best()) is not None:
            self.merge(pair)
        return self

    def at(self, merges: int) -> tuple[list[list[int]], list[list[int]]]:
        """Return the sequences as they were after some merges, and where each token's first part stood."""
        symbols, gone = list(self._start), set()
        done = self.lengths[0] - self.lengths[merges]
        for place, symbol, absorbed in self._events[:done]:
            symbols[place] = symbol
            gone.add(absorbed)
        sequences, starts, place = [], [], 0
        for length in self._lengths:
            kept = [i for i in range(place, place + length) if i not in gone]
            sequences.append([symbols[i] for i in kept])
            starts.append([i - place for i in kept])
            place += length
        return sequences, starts

    # -- bookkeeping --

    def _pair(self, place: int) -> Pair | None:
        right = self._right[place] if place >= 0 else -1
        return (self._symbols[place], self._symbols[right]) if right >= 0 else None

    def _add(self, place: int) -> None:
        pair = self._pair(place)
        if pair is not None and self.join(*pair) is not None:
            self._places.setdefault(pair, set()).add(place)
            self._counts[pair] = self._counts.get(pair, 0) + (1 if self._weights is None else self._weights[place])
            heapq.heappush(self._first.setdefault(pair, []), place)
            self._touched.add(pair)

    def _drop(self, place: int) -> None:
        pair = self._pair(place)
        if pair is None or place not in self._places.get(pair, ()):
            return
        self._places[pair].remove(place)
        self._counts[pair] -= 1 if self._weights is None else self._weights[place]
        self._touched.add(pair)

    def _settle(self) -> None:
        """Queue the pairs that changed, and forget those that are nowhere."""
        for pair in self._touched:
            if self._places[pair]:
                heapq.heappush(self._queue, (-self._counts[pair], self._first_of(pair), pair))
            else:
                del self._places[pair], self._counts[pair], self._first[pair]
        self._touched.clear()

    def _first_of(self, pair: Pair) -> int:
        heap, places = self._first[pair], self._places[pair]
        while heap[0] not in places:
            heapq.heappop(heap)
        return heap[0]


@check_literals
def pair_rule(
    boundary: Boundary,
    pretokens: Callable[[str], Sequence[Any]] | None = None,
    punctuation: Container[bytes] | None = None,
) -> MergeRule:
    """Return the rule that says whether two tokens may become one.

    A token never holds white space behind its first character unless it is white space only; two newlines stay two
    tokens. What is no UTF-8 text yet may be joined, since a character is being completed. Else the boundary decides:

    ``pretokens``
        The two together are one piece for the pre-tokenizer: tokens grow to what the vocabulary could have held.
    ``word``
        They hold one word between white space.
    ``word_hyphen``
        Likewise; of punctuation only a hyphen is joined to what is none.
    ``sentence``
        Anything.

    Parameters
    ----------
    boundary
        One of these.
    pretokens
        Cuts a text as the tokenizer does; needed for ``pretokens``.
    punctuation
        Tokens of the vocabulary that hold punctuation and no digit; needed for ``word_hyphen``.

    Raises
    ------
    UserError
        The boundary is unknown, or what it needs is not given.
    """
    if boundary == "pretokens" and pretokens is None:
        raise UserError("boundary 'pretokens' needs the tokenizer's pre-tokenizer; pass pretokens, or boundary='word'")
    if boundary == "word_hyphen" and punctuation is None:
        raise UserError("boundary 'word_hyphen' needs the tokens of punctuation; pass punctuation, or boundary='word'")
    marks: Container[bytes] = punctuation or ()
    words = pre_tokenizers.WhitespaceSplit().pre_tokenize_str

    def valid(left: bytes, right: bytes) -> bool:
        both = left + right
        if any(byte in _SPACES for byte in both[1:]) and (both == b"\n\n" or both.strip(_SPACES)):
            return False
        if boundary == "sentence":
            return True
        try:
            text = both.decode()
        except UnicodeDecodeError:
            return True
        if boundary == "pretokens" and pretokens is not None:
            return len(pretokens(text)) == 1
        if len(words(text)) != 1:
            return False
        if boundary == "word_hyphen" and left not in marks and right in marks:
            return right == b"-"
        return True

    return valid


def dynamic_merge(
    token_lists: Sequence[Sequence[bytes]], n_merges: int | None, valid: MergeRule
) -> tuple[list[list[bytes]], list[tuple[bytes, bytes]]]:
    """Join the most frequent pair of neighbours up to `n_merges` times (None: while there is one).

    Parameters
    ----------
    token_lists
        Tokens of every sequence of the batch, as bytes.
    n_merges
        Merges at most; fewer where no pair is left that may be joined. Pairs that occur once are joined, too.
    valid
        From `pair_rule`.

    Returns
    -------
    list of list of bytes
        The sequences with joined tokens; each joins to the same bytes as before.
    list of pairs
        What was joined, in order.

    Raises
    ------
    UserError
        `n_merges` is negative.
    """
    if n_merges is not None and n_merges < 0:
        raise UserError(f"n_merges={n_merges} is negative; pass 0 for the base tokenization, or more")
    symbols = Symbols(valid)
    merging = Merging([[symbols.of(token) for token in tokens] for tokens in token_lists], symbols.join).run(n_merges)
    names = symbols.surfaces
    sequences, _ = merging.at(len(merging.merges))
    return [[names[s] for s in sequence] for sequence in sequences], [(names[a], names[b]) for a, b in merging.merges]


class Symbols:
    """Numbers for the distinct tokens of one batch: those with bytes by their bytes, special ones by their id."""

    def __init__(self, valid: MergeRule) -> None:
        self.surfaces: list[bytes] = []
        self._valid, self._known = valid, {}
        self._joined: dict[Pair, int | None] = {}

    def of(self, key: Hashable, surface: bytes | None = None) -> int:
        """Return the number of a token, by its bytes or another key."""
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = len(self.surfaces)
            self.surfaces.append(key if surface is None else surface)  # type: ignore[arg-type]
        return number

    def join(self, left: int, right: int) -> int | None:
        """Return the number of what two tokens become, or None where they may not be joined."""
        try:
            return self._joined[left, right]
        except KeyError:
            a, b = self.surfaces[left], self.surfaces[right]
            joined = self.of(a + b) if a and b and self._valid(a, b) else None
            self._joined[left, right] = joined
            return joined
