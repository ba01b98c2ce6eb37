"""The lexicon of Less-is-Better: a ranked list of units that learns from every article that is read with it.

Reading takes the longest known unit, memorises neighbours that meet twice, and tests every unit against its
next-shorter rival; after the article units move, are forgotten, and go on probation. Number for number the authors'
code of 2020 when nothing is drawn (``memorize=1``).

One file because list, trie, probation and moves are views of one thing that must agree after every article. Not here:
where articles come from, and the tokenizer that is made of the list (`mintage.segment.less_is_better`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["ArticleStats", "Lexicon"]

_BLOCK = 128  # units that a move searches one by one


class ArticleStats(NamedTuple):
    """What reading one article was like."""

    covered: float
    """Share of characters inside a known unit."""
    mean_length: float
    """Characters per unit read; an unknown character counts as one unit."""
    used: float
    """Share of the lexicon, after the article, that was read in it."""
    added: int
    """Units memorised."""
    size: int
    """Units in the lexicon after the article."""


class Lexicon:
    """The ranked list of units and the probation table, with a trie over the list.

    Parameters
    ----------
    units
        In rank order, best first, without duplicates.
    probation
        Unit to the number of articles in which it must prove itself.
    max_len, life, memorize, forget, update, max_gap
        As in `mintage.segment.LiB`.
    """

    def __init__(
        self,
        units: Iterable[str],
        probation: dict[str, int],
        *,
        max_len: int = 12,
        life: int = 10,
        memorize: float = 0.25,
        forget: float = 1e-4,
        update: float = 0.2,
        max_gap: int = 2,
    ) -> None:
        self.units = list(units)
        self.probation = dict(probation)
        self.max_len, self.life, self.max_gap = max_len, life, max_gap
        self.memorize, self.forget, self.update = memorize, forget, update
        self.ranks = {unit: rank for rank, unit in enumerate(self.units)}
        # a node maps characters to nodes, and "" to its answer: the longest unit on the way to it, and the second
        self._trie: dict[str, Any] = {"": ("", "")}
        for unit in self.units:
            self._insert(unit)

    def match(self, text: str, start: int = 0) -> tuple[str, str]:
        """Return the longest unit that `text` has at `start`, and the next-shorter one; either may be empty."""
        node = self._trie
        for char in text[start : start + self.max_len]:
            deeper = node.get(char)
            if deeper is None:
                break
            node = deeper
        return node[""]

    def read(self, article: Iterable[str], rng: random.Random) -> ArticleStats:
        """Read one article, a list of sentences, and learn from it."""
        units, ranks, probation, match = self.units, self.ranks, self.probation, self.match
        known_before = len(units)
        events: list[tuple[str, int]] = []
        proposed: set[str] = set()
        used: set[str] = set()
        chars = pieces = gaps = streak = 0
        for sentence in article:
            length = len(sentence)
            chars += length
            found: list[Any] = [None] * length  # answers of `match` by position; both paths ask for many twice
            pending: dict[str, list[Any]] = {}  # tests: unit -> where its rival path is, where its own starts, rival
            path: list[str] = []  # units read in this sentence; "" is an unknown character
            last, known = "", False
            i = 0
            while i < length:
                # 1. advance the rival path of every test; where both paths meet, decide
                decided = []
                for unit, test in pending.items():
                    end, start, rival = test
                    while end < i:
                        answer = found[end]
                        if answer is None:
                            answer = found[end] = match(sentence, end)
                        rival.append(answer[0])
                        end += len(answer[0]) or 1
                    test[0] = end
                    if end == i:
                        decided.append(unit)
                        if self._is_redundant(path[start:], rival):
                            events += ((unit, +1), (match(unit[:-1])[0], -1))
                        else:
                            events.append((unit, -1))
                            probation.pop(unit, None)
                for unit in decided:
                    del pending[unit]
                # 2. the longest unit here, and its next-shorter rival
                answer = found[i]
                if answer is None:
                    answer = found[i] = match(sentence, i)
                unit, second = answer
                path.append(unit)
                if not unit:  # 4. an unknown character: the unknown stretch grows
                    last, known = (sentence[i] if known else last + sentence[i]), False
                    i += 1
                    gaps, pieces, streak = gaps + 1, pieces + 1, 0
                    continue
                # 3a. a candidate is noted when met once in this article, memorised when met twice;
                # the guard with the number 2 is as in the authors' code: the size of a record, not a length
                if 2 + len(unit) <= self.max_len and rng.random() < self.memorize:
                    candidate = ""
                    if known:
                        if len(last) + len(unit) <= self.max_len:
                            candidate = last + unit
                    elif len(last) <= self.max_gap:
                        candidate = last
                    if candidate and candidate not in ranks:
                        if candidate in proposed:
                            proposed.remove(candidate)
                            ranks[candidate] = len(units)
                            units.append(candidate)
                            self._insert(candidate)
                            found = [None] * length
                        else:
                            proposed.add(candidate)
                # 3b. test the unit against its rival; one without a rival has only to occur
                if second and len(unit) > 1:
                    pending[unit] = [i + len(second), len(path) - 1, [second]]
                elif unit in probation:
                    del probation[unit]
                if i == 0 and streak == 1:
                    pieces -= 1  # as in the authors' statistics: a sentence of one unit and the next unit count as one
                streak = streak + 1 if known else 1
                pieces += 1
                used.add(unit)
                i += len(unit)
                last, known = unit, True
        added = len(units) - known_before
        self._update(events)
        size = len(self.units)
        share = len(used & self.ranks.keys()) / size if size else 0.0
        return ArticleStats(1 - gaps / chars if chars else 0.0, chars / pieces if chars else 0.0, share, added, size)

    def _is_redundant(self, path: list[str], rival: list[str]) -> bool:
        """Whether the rival path knows more characters, or as many with fewer units or units of better rank."""
        unknown, rival_unknown = path.count(""), rival.count("")
        if unknown != rival_unknown:
            return unknown > rival_unknown
        steps = len(path) - unknown
        if steps != len(rival):
            return steps > len(rival)
        ranks = self.ranks
        return sum([ranks[u] for u in path if u]) > sum([ranks[u] for u in rival if u])

    def _update(self, events: list[tuple[str, int]]) -> None:
        """Forget, move and put on probation after an article; +1 moves a unit to the tail, -1 to the head."""
        expired = {unit for unit, life in self.probation.items() if life <= 1}
        self.probation = {unit: life - 1 for unit, life in self.probation.items() if life > 1}
        for unit in expired & self.ranks.keys():
            self._delete(unit)
        left = [unit for unit in self.units if unit not in expired] if expired else self.units
        self.units, dropped = _moved(left, events, self.update)
        for unit in dropped:
            self._delete(unit)
        self.ranks = {unit: rank for rank, unit in enumerate(self.units)}
        for unit in self.units[int((1 - self.forget) * len(self.units)) :]:
            self.probation.setdefault(unit, self.life)

    def _insert(self, unit: str) -> None:
        node = self._trie
        for char in unit:
            deeper = node.get(char)
            if deeper is None:
                deeper = node[char] = {"": node[""]}
            node = deeper
        _answer(node, (unit, node[""][0]), len(unit))

    def _delete(self, unit: str) -> None:
        path = [self._trie]
        for char in unit:
            path.append(path[-1][char])
        for depth in range(len(unit), 0, -1):
            node = path[depth]
            if len(node) > 1 or (depth < len(unit) and len(node[""][0]) == depth):
                break  # others run through this node, or a shorter unit ends here
            del path[depth - 1][unit[depth - 1]]
        _answer(path[-1], path[-2][""], len(unit))


def _answer(node: dict[str, Any], answer: tuple[str, str], depth: int) -> None:
    """Give the node at `depth` its answer, and hand down what changes by it."""
    node[""] = answer
    for char, deeper in node.items():
        if char:
            longest, second = deeper[""]
            if len(longest) != depth + 1:  # no unit ends there
                _answer(deeper, answer, depth + 1)
            elif second != answer[0]:
                _answer(deeper, (longest, answer[0]), depth + 1)


def _moved(units: list[str], events: list[tuple[str, int]], rate: float) -> tuple[list[str], list[str]]:
    """Move units by a share of their rank, one event after the other; return them, and those moved past the end.

    The list is cut into blocks, so that a move costs a search within one and a walk over some, not over all units.
    """
    blocks = [units[k : k + _BLOCK] for k in range(0, len(units), _BLOCK)]
    sizes = list(map(len, blocks))
    block_of = {unit: b for b, block in enumerate(blocks) for unit in block}
    size, dropped = len(units), []
    for unit, direction in events:
        b = block_of.get(unit)
        if b is None:
            continue  # forgotten, or the empty rival
        place = blocks[b].index(unit)
        rank = sum(sizes[:b]) + place
        if not rank:
            continue  # the best unit stays
        step = int(rank * rate) + 1
        del blocks[b][place]
        sizes[b] -= 1
        if direction > 0 and rank + step >= size:
            size -= 1
            del block_of[unit]
            dropped.append(unit)
            continue
        place += direction * step
        while place < 0:
            b -= 1
            place += sizes[b]
        while place > sizes[b]:
            place -= sizes[b]
            b += 1
        blocks[b].insert(place, unit)
        sizes[b] += 1
        block_of[unit] = b
    return [unit for block in blocks for unit in block], dropped
