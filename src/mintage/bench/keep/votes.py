"""Ways to vote on the tokens that are read: softly, hard, by blocks of tokens, by lot."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mintage.keep.contract import Policy
from mintage.keep.token_select import TokenSelect

__all__ = ["PLACES", "BlocksVote", "DrawnVote", "voting"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlocksVote(TokenSelect):
    """The same with whole blocks of tokens, voted on by their mean key."""

    block: int = 16

    def count(self, scores: Tensor) -> Tensor:
        """Give all tokens of a block its votes, the earlier ones a hair more so that a block is taken in order."""
        number = scores.shape[-1]
        short = -number % self.block
        padded = torch.nn.functional.pad(scores, (0, short), value=float("nan"))
        means = padded.unflatten(-1, (-1, self.block)).nanmean(-1)
        ballots = super().count(means).repeat_interleave(self.block, -1)[..., :number]
        return ballots * (1 - 1e-6 * (torch.arange(number, device=scores.device) % self.block))


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnVote(TokenSelect):
    """The same with tokens drawn at random."""

    def count(self, scores: Tensor) -> Tensor:
        """Vote by lot, the same lot for the same text."""
        generator = torch.Generator().manual_seed(scores.shape[-1])
        return torch.rand(scores.shape[0], scores.shape[-1], generator=generator).to(scores.device)


_VOTES = {
    "soft vote": TokenSelect(),
    "hard vote": TokenSelect(vote="hard"),
    "blocks of 16": BlocksVote(),
    "random choice": DrawnVote(),
}

PLACES = {"as published": True, "true distances": False}
"""Whether chosen tokens are read side by side, or where they stand."""


def voting(entries: int) -> dict[str, Policy]:
    """Return every way to vote at both places, reading `entries` tokens."""
    return {
        f"{name}, {where}": replace(policy, reassign=side).at(entries)
        for where, side in PLACES.items()
        for name, policy in _VOTES.items()
    }
