"""What tokens of DNA are worth: bases per token, survival of edits, what neighbours betray; and a score of classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mintage.errors import UserError
from mintage.lm.core.dna_tokens import DNATokenizer

__all__ = ["GenomeReport", "NeighbourLookup", "edit_stability", "genome_report", "matthews", "recoverable"]


class GenomeReport(NamedTuple):
    """How a tokenizer cuts sequences.

    Parameters
    ----------
    bases_per_token
        Of all sequences.
    vocabulary_use
        Share of the vocabulary, special tokens left out, that occurs.
    edit_stability
        Mean of `edit_stability` over the sequences.
    unknown
        Share of the tokens that are [UNK].
    """

    bases_per_token: float
    vocabulary_use: float
    edit_stability: float
    unknown: float


def genome_report(tokenizer: DNATokenizer, sequences: Sequence[str], seed: int = 0) -> GenomeReport:
    """Cut sequences, and cut them again with one base of each deleted.

    Raises
    ------
    UserError
        There is no sequence of two bases.
    """
    cut = tokenizer.encode_all(sequences)
    ids = np.concatenate([np.array(row, np.int64) for row in cut]) if cut else np.empty(0, np.int64)
    long = [sequence for sequence in sequences if len(sequence) > 1 + tokenizer.overlap]
    if not long or not len(ids):
        raise UserError("there is no sequence to report on; pass some of at least a few bases")
    drawn = np.random.default_rng(seed)
    kept = [edit_stability(tokenizer, sequence, int(drawn.integers(len(sequence)))) for sequence in long]
    own = ids[ids >= tokenizer.lengths.nonzero()[0][0]]
    return GenomeReport(
        bases_per_token=sum(map(len, sequences)) / len(ids),
        vocabulary_use=len(np.unique(own)) / int((tokenizer.lengths > 0).sum()),
        edit_stability=float(np.mean(kept)),
        unknown=1 - len(own) / len(ids),
    )


def edit_stability(tokenizer: DNATokenizer, sequence: str, index: int) -> float:
    """Return the share of a sequence's tokens that are still there, in order, when base `index` is deleted."""
    before, after = tokenizer.encode_all([sequence, sequence[:index] + sequence[index + 1 :]])
    blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(before)


def recoverable(masked: Bool[np.ndarray, "rows tokens"], k: int) -> Bool[np.ndarray, "rows tokens"]:
    """Return which masked overlapping k-mers can be read off their neighbours, base by base.

    Token i holds bases i to i + k - 1; a base is known where any token that holds it is not masked.
    """
    rows, count = masked.shape
    known = np.zeros((rows, count + k - 1), bool)
    for offset in range(k):
        known[:, offset : offset + count] |= ~masked
    whole = np.ones_like(masked)
    for offset in range(k):
        whole &= known[:, offset : offset + count]
    return masked & whole


class NeighbourLookup:
    """Guesses a token by the one that stood most often between the same two neighbours."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        between: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        for row in rows:
            for left, token, right in zip(row, row[1:], row[2:], strict=False):
                between[left, right][token] += 1
        self.guess = {around: found.most_common(1)[0][0] for around, found in between.items()}

    def right(self, row: Sequence[int], masked: Sequence[bool]) -> tuple[int, int]:
        """Return how many masked tokens are guessed right between unmasked neighbours, and how many there are."""
        places = [i for i in range(1, len(row) - 1) if masked[i]]
        hits = [
            self.guess.get((row[i - 1], row[i + 1])) == row[i]
            for i in places
            if not masked[i - 1] and not masked[i + 1]
        ]
        return sum(hits), len(places)


def matthews(truth: Int[np.ndarray, " items"], said: Int[np.ndarray, " items"]) -> float:
    """Return Matthews' correlation of two labellings of any number of classes (Gorodkin 2004); 0 if one is constant."""
    classes = int(max(truth.max(), said.max())) + 1
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, said), 1)
    count, true, told = table.sum(), table.sum(1), table.sum(0)
    spread = (count**2 - (true**2).sum()) * (count**2 - (told**2).sum())
    return float((np.trace(table) * count - true @ told) / np.sqrt(spread)) if spread else 0.0
