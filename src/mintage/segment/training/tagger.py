"""What the tagger of a `mintage.segment.Decompounder` learns: words with their cuts, in batches of similar length."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mintage.segment.decompounder import LONGEST, Decompounder, lower_letters
from mintage.segment.hyphens import split_by_constituents

__all__ = ["Example", "TaggerRecipe", "gold_example", "lexicon_of", "pair_example"]

_SORTED_TOGETHER = 16  # batches drawn together and sorted by length

Example = tuple[str, tuple[int, ...]]
"""A word and where it is cut."""


class TaggerRecipe:
    """What the training loop needs: words with their cuts, in batches of similar length, and the loss.

    Parameters
    ----------
    decompounder
        Encodes words; its tagger is trained.
    examples
        Words and the places of their cuts.
    batch
        Words per step.
    seed
        Of the order.
    """

    def __init__(self, decompounder: Decompounder, examples: Sequence[Example], *, batch: int, seed: int) -> None:
        self.module, self.decompounder, self.examples = decompounder.tagger, decompounder, examples
        self.size, self.seed = min(batch, len(examples)), seed
        self._epoch: tuple[int, list[int]] = (-1, [])
        self._cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the examples, their order in batches, the lexicon and the network's sizes."""
        shapes = [list(p.shape) for p in self.module.parameters()]
        known = [self.decompounder.letters, list(self.decompounder.lexicon.items())]
        held = json.dumps([self.examples, self.size, self.seed, shapes, known])
        return hashlib.sha256(held.encode()).hexdigest()[:12]

    def _words_of(self, index: int) -> list[int]:
        """Take a pool of shuffled words, sorted by length, cut into batches whose order is shuffled, too."""
        together = min(_SORTED_TOGETHER, len(self.examples) // self.size)
        per_epoch = len(self.examples) // (self.size * together)
        pool, turn = divmod(index, together)
        epoch, number = divmod(pool, per_epoch)
        if self._epoch[0] != epoch:
            order = list(range(len(self.examples)))
            Random(f"{self.seed} {epoch}").shuffle(order)
            self._epoch = (epoch, order)
        width = self.size * together
        chosen = sorted(self._epoch[1][number * width :][:width], key=lambda i: len(self.examples[i][0]))
        turns = list(range(together))
        Random(f"{self.seed} {pool} batches").shuffle(turns)
        return chosen[turns[turn] * self.size :][: self.size]

    def batch(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return letters, features, the mask of possible cuts, and the cuts, all (words, length, ...)."""
        chosen = [self.examples[i] for i in self._words_of(index)]
        letters, features, possible = self.decompounder.batch([self._encoded(word) for word, _ in chosen])
        cuts = torch.zeros(letters.shape)
        for row, (_, places) in enumerate(chosen):
            cuts[row, [place - 1 for place in places]] = 1
        return letters, features, possible, cuts

    def _encoded(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        if word not in self._cache:
            self._cache[word] = self.decompounder.encode(word)
        return self._cache[word]

    def loss(self, module: Any, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Binary cross-entropy per possible cut; logged beside it: the share of words cut exactly right."""
        letters, features, possible, cuts = batch
        logits = module(letters, features)
        losses = F.binary_cross_entropy_with_logits(logits, cuts, reduction="none")
        loss = (losses * possible).sum() / possible.sum().clamp(min=1)
        exact = (((logits > 0) == (cuts > 0)) | ~possible).all(1).float().mean()
        return loss, {"exact": exact.item()}


def pair_example(word: str, target: str) -> Example | None:
    """Return the word and the places of its hyphens; None where they cannot be told or nothing can be learned."""
    pieces = target.split("-")
    if not 2 <= len(word) <= LONGEST or sum(map(len, pieces)) != len(word) or "" in pieces:
        return None
    return word, tuple(np.cumsum([len(piece) for piece in pieces[:-1]]).tolist())


def gold_example(word: str, constituents: Sequence[str]) -> Example | None:
    """Return the word and the places where its constituents end; None where they cannot be found in it."""
    found = split_by_constituents(word, constituents) if len(constituents) > 1 else ([word], 0)
    return None if found is None else pair_example(word, "-".join(found[0]))


def lexicon_of(words: Mapping[str, int], size: int) -> dict[str, int]:
    """Keep the most frequent words of letters, lower case, with the logarithm (base 2) of their counts."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        if word.isalpha() and len(word) > 1:
            counts[lower_letters(word)] += count
    return {word: min(int(math.log2(count)), 255) for word, count in counts.most_common(size)}
