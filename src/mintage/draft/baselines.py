"""Rivals under the same contract: what a user would pick instead of the papers' methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mintage.draft.adapters import Target
from mintage.draft.contract import Context, Drafter
from mintage.draft.tree import TokenTree, Topology
from mintage.errors import UserError

__all__ = ["Plain", "PromptLookup"]

_PRIOR = (0.35, 0.6, 0.75)  # chance that the next token repeats, after a match of 1, 2, 3 or more tokens
_PRIOR_WEIGHT = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Plain(Drafter):
    """Autoregressive decoding: every tree is the root alone."""

    def propose(self, context: Context) -> TokenTree:
        """Draft nothing."""
        return TokenTree.root_only(context.root)

    @classmethod
    def tiny(cls) -> Plain:
        """Make an instance for the laws."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptLookup(Drafter):
    """Prompt lookup (Saxena 2023): the last n-gram occurred before, so draft what followed it then.

    As in transformers, longer n-grams are tried first; unlike there, the most recent occurrence wins.

    Parameters
    ----------
    length
        Tokens to draft.
    ngram
        Longest n-gram to look for.
    """

    length: int = 10
    ngram: int = 3

    def __post_init__(self) -> None:
        if self.length < 1 or self.ngram < 1:
            raise UserError(f"length={self.length}, ngram={self.ngram}; both must be at least 1")

    def begin(self, target: Target, context: Context) -> None:
        """Start the request's record of how often a match of n tokens was right: right, tried."""
        context.memory[self] = [[p * _PRIOR_WEIGHT, _PRIOR_WEIGHT] for p in _PRIOR]

    def propose(self, context: Context) -> TokenTree:
        """Draft one chain."""
        ids = context.ids
        for size in range(min(self.ngram, len(ids) - 1), 0, -1):
            windows = ids[:-1].unfold(0, size, 1)
            found = (windows == ids[-size:]).all(1).nonzero()
            if len(found):
                start = int(found[-1]) + size
                drafted = ids[start : start + self.length]
                right, tried = context.memory[self][min(size, len(_PRIOR)) - 1]
                depth = torch.arange(len(drafted) + 1, device=ids.device)
                return TokenTree(
                    tokens=torch.cat([ids[-1:], drafted]),
                    topology=Topology.chain(len(drafted)),
                    confidence=(right / tried) ** depth,
                )
        return TokenTree.root_only(context.root)

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Learn how far to trust a match of this many tokens."""
        if len(tree) == 1 or tree.confidence is None:
            return
        shares = [right / tried for right, tried in context.memory[self]]
        record = context.memory[self][min(range(len(shares)), key=lambda i: abs(shares[i] - float(tree.confidence[1])))]
        record[0] += len(path) - 1
        record[1] += min(len(path), len(tree) - 1)  # the first miss was tried too

    @classmethod
    def tiny(cls) -> PromptLookup:
        """Make an instance for the laws."""
        return cls(length=4)
