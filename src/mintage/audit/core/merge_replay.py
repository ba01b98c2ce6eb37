"""Replay a BPE merge list on samples of text, and count all pairs of adjacent tokens before every merge.

The transcript is what a trainer would have seen on these samples (Hayase et al., arXiv 2407.16607, section 3.1). It is
kept as the spans of steps over which a pair's counts stay the same, so its size follows the changes, not the product of
merges and pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from mintage.errors import UserError
from mintage.progress import Progress, silent

__all__ = ["Replay", "Transcript", "merge_pair_counts", "replay"]

_LONGEST = 4096  # symbols; longer pre-tokens are cut, so that an unsplit document costs no more than its length
_CHUNK = 1 << 21  # symbols replayed at once: about 200 MB of events
_SHIFT = 31  # a pair of tokens is the key ``left << 31 | right``

Ints = Integer[np.ndarray, " _"]  # of any length


@dataclass(frozen=True, eq=False)
class Transcript:
    """How often every pair of adjacent tokens stands in every category, at every step at which that changes.

    Entry k says: from step `start[k]` up to `end[k]` (not included) pair `pair[k]` occurs `counts[k, i]` times in
    category i. Entries are sorted by pair, then by step. A pair occurs nowhere before its first entry.

    Parameters
    ----------
    categories
        Names, in the order of the columns.
    pairs
        The pairs of tokens.
    merge_pair
        Position in `pairs` of every merge; -1 where the pair occurs in no sample at any step.
    pair, start, end, counts
        The entries.
    denominators
        Pairs in each sample before the first merge: the paper's normaliser.
    """

    categories: tuple[str, ...]
    pairs: list[tuple[Any, Any]]
    merge_pair: Integer[np.ndarray, " steps"]
    pair: Integer[np.ndarray, " entries"]
    start: Integer[np.ndarray, " entries"]
    end: Integer[np.ndarray, " entries"]
    counts: Integer[np.ndarray, "entries categories"]
    denominators: Integer[np.ndarray, " categories"]

    @property
    def steps(self) -> int:
        """The number of merges."""
        return len(self.merge_pair)

    @property
    def merge_entry(self) -> Int[np.ndarray, " steps"]:
        """Entry of every merge at its own step; -1 where its pair has not occurred yet."""
        keys = self.pair.astype(np.int64) * self.steps + self.start
        wanted = self.merge_pair.astype(np.int64) * self.steps + np.arange(self.steps)
        index = np.searchsorted(keys, wanted, side="right") - 1
        known = (self.merge_pair >= 0) & (index >= 0) & (self.pair[index] == self.merge_pair)
        return np.where(known, index, -1)

    @property
    def merge_counts(self) -> Integer[np.ndarray, "steps categories"]:
        """Occurrences of every merge at its own step."""
        index = self.merge_entry
        return np.where(index[:, None] >= 0, self.counts[index], 0)

    def at(self, step: int) -> dict[tuple[Any, Any], tuple[int, ...]]:
        """Return the counts of the pairs that occur just before merge `step`, one number per category."""
        live = np.flatnonzero((self.start <= step) & (step < self.end) & self.counts.any(axis=1))
        return {self.pairs[self.pair[k]]: tuple(self.counts[k].tolist()) for k in live}

    def first(self, steps: int) -> Transcript:
        """Return the transcript of the first `steps` merges alone."""
        kept = self.start < steps
        return Transcript(
            self.categories,
            self.pairs,
            self.merge_pair[:steps],
            self.pair[kept],
            self.start[kept],
            np.minimum(self.end[kept], steps),
            self.counts[kept],
            self.denominators,
        )


@dataclass(frozen=True, eq=False)
class Replay:
    """What every merge changes in every word, whatever the words' counts.

    Entries as in `Transcript`; those of entry k are the events ``offset[k]`` to ``offset[k + 1]``, of which each says
    that `word` has `change` more occurrences of the pair.
    """

    pairs: list[tuple[Any, Any]]
    merge_pair: Integer[np.ndarray, " steps"]
    pair: Integer[np.ndarray, " entries"]
    start: Integer[np.ndarray, " entries"]
    end: Integer[np.ndarray, " entries"]
    offset: Integer[np.ndarray, " bounds"]
    word: Integer[np.ndarray, " events"]
    change: Integer[np.ndarray, " events"]

    def counts(self, samples: Mapping[str, Integer[np.ndarray, " words"]]) -> Transcript:
        """Count the pairs of samples that hold word w ``samples[category][w]`` times.

        Raises
        ------
        UserError
            A sample holds no pair of symbols at all.
        """
        firsts = np.flatnonzero(np.diff(self.pair, prepend=-1))
        spans = np.diff(np.append(firsts, len(self.pair)))
        columns = []
        for weights in samples.values():
            delta = np.add.reduceat(weights.astype(np.int64)[self.word] * self.change, self.offset[:-1])
            total = np.cumsum(delta)
            total -= np.repeat(total[firsts] - delta[firsts], spans)  # what belongs to the pairs before
            columns.append(total if total.max() >= 2**31 else total.astype(np.int32))
        counts = np.stack(columns, axis=1)
        denominators = counts[self.start == 0].sum(axis=0, dtype=np.int64)
        for name, pairs in zip(samples, denominators, strict=True):
            if not pairs:
                raise UserError(f"the sample of {name!r} holds no two symbols side by side; pass more text")
        return Transcript(
            tuple(samples), self.pairs, self.merge_pair, self.pair, self.start, self.end, counts, denominators
        )


def merge_pair_counts(
    samples: Mapping[str, Mapping[Any, int]],
    merges: Sequence[tuple[Any, Any]],
    *,
    alphabet: Collection[str] | None = None,
) -> Transcript:
    """Replay the merges on the samples and count all pairs before every merge (section 3.1).

    Parameters
    ----------
    samples
        For every category its pre-tokens, all `str` or all `bytes`, with their counts.
    merges
        Pairs of tokens of the same type, in the order in which the trainer chose them.
    alphabet
        Characters that are tokens; others break a pre-token. None: all are.

    Raises
    ------
    UserError
        No category or no merge, a merge that comes twice, a sample without text.
    """
    if not samples:
        raise UserError("no category given; pass a sample of at least one")
    words = list(dict.fromkeys(chain.from_iterable(samples.values())))
    index = {word: number for number, word in enumerate(words)}
    weights = {name: np.zeros(len(words), np.int64) for name in samples}
    for name, counted in samples.items():
        for word, count in counted.items():
            weights[name][index[word]] = count
    return replay(words, merges, alphabet=alphabet).counts(weights)


def replay(
    words: Sequence[Any],
    merges: Sequence[tuple[Any, Any]],
    *,
    alphabet: Collection[str] | None = None,
    prefix: str = "",
    suffix: str = "",
    progress: Progress = silent,
) -> Replay:
    """Apply the merges to every word, in order and left to right, and log which pairs go and come at which step.

    Words do not influence each other, so all of them advance together: at every turn each word applies its own next
    merge. There are as many turns as merges in the longest word, however long the merge list is.

    Parameters
    ----------
    words
        Unique pre-tokens, all `str` or all `bytes`.
    merges, alphabet
        As in `merge_pair_counts`.
    prefix, suffix
        What the model puts before symbols inside a word, and after its last one (e.g. ``"</w>"``).
    progress
        Told the number of words replayed.

    Raises
    ------
    UserError
        No merge, a merge that comes twice, no two symbols side by side.
    """
    if not merges:
        raise UserError("the merge list is empty; there is nothing to infer from")
    table = _MergeTable(merges, prefix, suffix, alphabet)
    logs: list[tuple[np.ndarray, ...]] = []
    for first, last in _chunks(words):
        logs += _events(table, *table.symbols(words, first, last))
        progress("replaying merges", last, len(words))
    if not sum(len(log[0]) for log in logs):
        raise UserError("the samples hold no two symbols side by side; pass more text")
    key, step, word, change = (np.concatenate(column) for column in zip(*logs, strict=True))
    del logs

    steps = len(merges)
    known, pair = np.unique(key, return_inverse=True)
    entries, entry = np.unique(pair.astype(np.int64) * steps + step, return_inverse=True)
    order = np.argsort(entry, kind="stable")
    pair_of, start = (entries // steps).astype(np.int32), (entries % steps).astype(np.int32)
    end = np.append(start[1:], steps).astype(np.int32)
    end[np.diff(pair_of, append=-1) != 0] = steps
    index = np.minimum(np.searchsorted(known, table.keys), len(known) - 1)
    tokens = list(table.number)
    lefts, rights = (known >> _SHIFT).tolist(), (known & ((1 << _SHIFT) - 1)).tolist()
    return Replay(
        pairs=[(tokens[a], tokens[b]) for a, b in zip(lefts, rights, strict=True)],
        merge_pair=np.where(known[index] == table.keys, index, -1).astype(np.int32),
        pair=pair_of,
        start=start,
        end=end,
        offset=np.concatenate([[0], np.cumsum(np.bincount(entry))]),
        word=word[order],
        change=change[order],
    )


class _MergeTable:
    """The merge list in numbers: every token has one, and sorted keys of pairs lead to the steps."""

    def __init__(
        self, merges: Sequence[tuple[Any, Any]], prefix: str, suffix: str, alphabet: Collection[str] | None
    ) -> None:
        self.prefix, self.suffix, self.alphabet = prefix, suffix, alphabet
        self.number: dict[Any, int] = {}
        products = [left + right[len(prefix) :] for left, right in merges]
        for token in chain(chain.from_iterable(merges), products):
            self.number.setdefault(token, len(self.number))
        self.product = np.array([self.number[token] for token in products], np.int32)
        self.keys = np.array([self.number[a] << _SHIFT | self.number[b] for a, b in merges], np.int64)
        self._order = np.argsort(self.keys, kind="stable").astype(np.int32)
        self._sorted = self.keys[self._order]
        twice = self._sorted[1:] == self._sorted[:-1]
        if twice.any():
            left, right = merges[self._order[1:][twice].min()]
            raise UserError(f"merge {left!r} + {right!r} comes twice; pass the list through clean_merges first")

    def step(self, left: Ints, right: Ints) -> Ints:
        """Step that merges each pair; the number of merges where none does."""
        keys = left.astype(np.int64) << _SHIFT | right
        index = np.minimum(np.searchsorted(self._sorted, keys), len(self.keys) - 1)
        return np.where(self._sorted[index] == keys, self._order[index], len(self.keys)).astype(np.int32)

    def symbols(self, words: Sequence[Any], first: int, last: int) -> tuple[Ints, Ints, Ints]:
        """Lay words end to end: tokens, the stretch that each belongs to, and the word of every stretch.

        Pairs are counted inside stretches: a word, or what is left of it between characters that are no tokens.
        """
        chosen = words[first:last]
        if isinstance(chosen[0], bytes):
            codes = np.frombuffer(b"".join(chosen), np.uint8).astype(np.int64)
        else:
            codes = np.frombuffer("".join(chosen).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
        word = np.repeat(np.arange(first, last, dtype=np.int32), lengths)
        inside = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        edge = (inside == 0) * 1 + (inside == np.repeat(lengths, lengths) - 1) * 2
        if not (self.prefix or self.suffix):
            edge[:] = 0
        distinct, which = np.unique(codes * 4 + edge, return_inverse=True)
        numbers = [self._symbol(code // 4, code % 4, isinstance(chosen[0], bytes)) for code in distinct.tolist()]
        token = np.array(numbers, np.int32)[which]
        breaks = inside % _LONGEST == 0
        breaks[1:] |= token[:-1] < 0
        stretch = (np.cumsum(breaks) - 1).astype(np.int32)
        known = token >= 0
        return token[known], stretch[known], word[breaks]

    def _symbol(self, code: int, edge: int, is_bytes: bool) -> int:
        if is_bytes:
            return self.number.setdefault(bytes([code]), len(self.number))
        text = ("" if edge & 1 else self.prefix) + chr(code) + (self.suffix if edge & 2 else "")
        if self.alphabet is not None and text not in self.alphabet:
            return -1
        return self.number.setdefault(text, len(self.number))


def _chunks(words: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Cut the words into runs of about `_CHUNK` symbols."""
    first = held = 0
    for number, word in enumerate(words):
        held += len(word)
        if held >= _CHUNK:
            yield first, number + 1
            first, held = number + 1, 0
    if first < len(words):
        yield first, len(words)


def _events(table: _MergeTable, token: Ints, stretch: Ints, word: Ints) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield (pair key, step, word, change): the pairs at first, then what goes and comes, as seen by the next step."""
    steps = len(table.keys)

    def log(at: Bool[np.ndarray, " _"], step: Any, change: int) -> tuple[np.ndarray, ...]:
        j = np.flatnonzero(at)
        key = token[j].astype(np.int64) << _SHIFT | token[j + 1]
        when = np.zeros(len(j), np.int32) if step is None else (step[j] + 1).astype(np.int32)
        return key, when, word[stretch[j]], np.full(len(j), change, np.int8)

    if len(token) < 2:
        return
    inner = np.append(stretch[:-1] == stretch[1:], False)  # a pair begins here
    yield log(inner, None, 1)
    rank = np.full(len(token), steps, np.int32)
    j = np.flatnonzero(inner)
    rank[j] = table.step(token[j], token[j + 1])
    while len(token):
        starts = np.flatnonzero(np.diff(stretch, prepend=-1))
        sizes = np.diff(np.append(starts, len(token)))
        following = np.minimum.reduceat(rank, starts)
        live = following < steps - 1  # what the last merge changes, no step sees
        kept = np.repeat(live, sizes)
        token, stretch, rank, inner = token[kept], stretch[kept], rank[kept], inner[kept]
        step = np.repeat(following[live], sizes[live])
        merged = _leftmost(rank == step)

        gone = merged.copy()
        gone[1:] |= merged[:-1]
        gone[:-1] |= merged[1:]
        yield log(gone & inner, step, -1)

        kept = np.ones(len(token), bool)
        kept[1:] = ~merged[:-1]
        if len(token):
            token = np.where(merged, table.product[np.minimum(step, steps - 1)], token)[kept]
        else:
            token = token[kept]
        # a merged token is the last of its stretch where the token that it took in was
        inner = np.where(merged, np.append(inner[1:], False), inner)[kept]
        stretch, rank, step, merged = stretch[kept], rank[kept], step[kept], merged[kept]
        rank[merged] = steps
        new = merged.copy()
        new[:-1] |= merged[1:]
        new &= inner
        yield log(new, step, 1)
        j = np.flatnonzero(new)
        found = table.step(token[j], token[j + 1])
        rank[j] = np.where(found > step[j], found, steps)  # a merge whose turn has passed is not applied


def _leftmost(hit: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Of overlapping occurrences of a pair (a a a) keep the first, third, ... of each run."""
    at = np.flatnonzero(hit)
    opens = np.diff(at, prepend=-2) != 1
    if opens.all():
        return hit
    run = np.maximum.accumulate(np.where(opens, np.arange(len(at)), 0))
    out = np.zeros_like(hit)
    out[at[(at - at[run]) % 2 == 0]] = True
    return out
