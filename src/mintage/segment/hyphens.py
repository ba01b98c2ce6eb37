"""What teaches a splitter of compounds: the hyphens that people write, and constituents that are given.

CompoundPiece, sections 3.1 and 3.3: `web_words` counts words with their hyphens, `hyphen_pairs` makes the
self-supervised training data from them, and `split_by_constituents` turns predicted or given *normalised* constituents
(bride, maid) into pieces of the word (brides|maid).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Literal

import regex

from mintage.options import check_literals

__all__ = ["hyphen_pairs", "remove_hyphens", "split_by_constituents", "web_words"]

RARE = math.exp(-6)  # a hyphenation rarer than this beside its closed form is a slip of the pen
KEEP_CASE = 0.001  # hyphens whose removal leaves the case alone, in training data
LONGEST = 64  # bytes of a word, as the paper's model reads
_EDGES = regex.compile(r"^\p{P}+|\p{P}+$")


# -- hyphens as supervision (section 3.1) --------------------------------------------------------------------------


def remove_hyphens(word: str, keep_case: Callable[[], bool] = lambda: False) -> str:
    """Write a hyphenated word in one, as if it had always been.

    The first letter after a hyphen takes the case of the one before it, where these differ: ``Haus-Tür`` becomes
    ``Haustür``. A caseless character counts as lower and as upper case.

    Parameters
    ----------
    word
        Hyphens at its ends are dropped.
    keep_case
        Asked at every hyphen; True leaves the case there alone.
    """
    out: list[str] = []
    index = 0
    while index < len(word):
        char = word[index]
        index += 1
        if char != "-":
            out.append(char)
        elif out and index < len(word):
            out.append(word[index] if keep_case() else _in_the_case_of(word[index - 2], word[index]))
            index += 1
    return "".join(out)


def _in_the_case_of(before: str, after: str) -> str:
    if before.lower() == before and after.upper() == after:
        return after.lower()
    if before.upper() == before and after.lower() == after:
        return after.upper()
    return after


def web_words(text: str) -> Iterable[str]:
    """Yield the words of a text that can teach: cut at white space, punctuation at the ends removed, hyphens kept.

    As in the authors' counting, a word with one of ``.@{}/[]`` or ``--`` inside, or longer than 64 bytes, is left out,
    and so is a hyphenated word with inner capitals, numbers after letters, or a part in capitals (``TCP-Port``).
    """
    for word in text.split():
        if word.isalpha():  # most words, and nothing to look at
            if len(word.encode("utf-8", "replace")) <= LONGEST:
                yield word
            continue
        if "--" in word or not set(word).isdisjoint(".@{}/[]") or len(word.encode("utf-8", "replace")) > LONGEST:
            continue
        mapped = word.replace("\u2010", "-")
        cut = _EDGES.sub("", mapped)
        if "-" in mapped:
            steps = pairwise(mapped)
            if any((c.isupper() and p != "-") or (c.isnumeric() and not p.isnumeric()) for p, c in steps):
                continue
            if any(all(c.isupper() or c.isnumeric() for c in part) for part in cut.split("-")):
                continue
        if cut:
            yield cut


def hyphen_pairs(word_counts: Mapping[str, int], *, seed: int | None = None) -> list[tuple[str, str]]:
    """Make training data from words that people write with a hyphen, and as many that they do not.

    Parameters
    ----------
    word_counts
        Words of one language with their counts, e.g. counted with `web_words`.
    seed
        Of the one removed hyphen in a thousand that leaves the case alone; None applies the case rule to all, as for
        validation.

    Returns
    -------
    list of (input, target)
        Positives first: the word written in one, and with its hyphens. Then negatives: the most frequent words without
        a hyphen that are not a positive's closed form, twice the same.
    """
    counts: Counter[str] = Counter()
    closed: dict[str, int] = defaultdict(int)
    for word, count in word_counts.items():
        counts[word.replace("\u2010", "-")] += count
        if "-" not in word:
            closed[word.lower()] += count
    best: dict[str, str] = {}
    for word, count in counts.items():
        if "-" not in word or min(map(len, word.split("-"))) < 2:
            continue
        stripped = word.replace("-", "").lower()
        if count / closed.get(stripped, 1) >= RARE and (stripped not in best or counts[best[stripped]] < count):
            best[stripped] = word
    chance = Random(seed)
    keep_case = (lambda: False) if seed is None else (lambda: chance.random() < KEEP_CASE)
    pairs = [(remove_hyphens(word, keep_case), word) for word in best.values()]
    plain = [word for word, _ in counts.most_common() if word and "-" not in word and word.lower() not in best]
    return pairs + [(word, word) for word in plain[: len(pairs)]]


# -- normalised constituents to pieces of the word (section 3.3) ---------------------------------------------------


@check_literals
def split_by_constituents(
    word: str, constituents: Sequence[str], *, prefer: Literal["last", "first"] = "last"
) -> tuple[list[str], int] | None:
    """Cut `word` where its normalised constituents lie in it.

    Piece i may be longer or shorter than constituent i by at most the constituent's length; the cuts minimise the sum
    of the Levenshtein distances between pieces and constituents, both in lower case. Found by dynamic programming over
    cut positions, in O(len(word) * len(constituents)^2) per constituent.

    Parameters
    ----------
    word
        For example ``bridesmaid``.
    constituents
        For example ``["bride", "maid"]``.
    prefer
        Among minimisers, ordered by the sum of the absolute length differences and then by the differences from left to
        right, take the last (a linking element goes to the constituent before it: ``brides|maid``) or the first.

    Returns
    -------
    (pieces, distance) or None
        None where no cut is possible or the best leaves a piece empty.
    """
    sign = -1 if prefer == "last" else 1
    # best[p]: cost of the constituents from i on over word[p:], as (distance, +-sum of |offset|, (+-offset, ...))
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {len(word): (0, 0, ())}
    for constituent in reversed(constituents):
        size, longer = len(constituent), {}
        for start in range(len(word) + 1):
            ends = [end for end in range(start, min(start + 2 * size, len(word)) + 1) if end in best]
            if not ends:
                continue
            distance = _prefix_distances(constituent, word[start : ends[-1]])
            longer[start] = min(
                (
                    distance[end - start] + best[end][0],
                    sign * abs(end - start - size) + best[end][1],
                    (sign * (end - start - size), *best[end][2]),
                )
                for end in ends
            )
        best = longer
    if 0 not in best:
        return None
    total, _, signed = best[0]
    lengths = [len(c) + sign * offset for c, offset in zip(constituents, signed, strict=True)]
    if not lengths or 0 in lengths:
        return None
    pieces, start = [], 0
    for length in lengths:
        pieces.append(word[start : start + length])
        start += length
    return pieces, total


def _prefix_distances(constituent: str, text: str) -> list[int]:
    """Levenshtein distance of `constituent` to every prefix of `text`, ignoring case."""
    target = constituent.lower()
    column = list(range(len(target) + 1))  # of target's prefixes to the prefix of text so far
    distances = [len(target)]
    for char in text:
        for lowered in char.lower():
            above, column[0] = column[0], column[0] + 1
            for i, wanted in enumerate(target, start=1):
                above, column[i] = column[i], min(column[i] + 1, column[i - 1] + 1, above + (wanted != lowered))
        distances.append(column[-1])
    return distances
