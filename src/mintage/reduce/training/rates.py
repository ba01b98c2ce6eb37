"""How many patches to keep, as distributions that have gradients (Chen et al., ICCV 2023, sections 3.2 and 3.4).

Not here: the model under masks (`mintage.reduce.training.masked`), the search (`mintage.reduce.training.diffrate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mintage.reduce.contract import Anatomy
from mintage.reduce.core.rate_schedule import RateSchedule

__all__ = ["Rate", "RateProxy", "Rates", "expected_macs"]

_ROUNDING = 1e-9  # of an expected count that is whole


@dataclass(frozen=True, eq=False)
class Rate:
    """A distribution over how many patches to keep, seen as numbers that have gradients.

    Parameters
    ----------
    kept
        Expected number of tokens, rounded up, the class token among them; backward as if it were not rounded (eq. 5).
    probability
        That the t-th token stays, the class token being number 0: it never rises.
    """

    kept: Float[Tensor, ""]
    probability: Float[Tensor, " tokens"]

    @cached_property
    def count(self) -> int:
        """`kept` as an int."""
        return int(self.kept.item())

    def mask(self, previous: int | None = None) -> Float[Tensor, " tokens"]:
        """1 for the first `kept` tokens and 0 for the others, backward as `probability` (eq. 7).

        Parameters
        ----------
        previous
            Tokens there were before: only those that go now are masked, later ones stay 1.
        """
        position = torch.arange(len(self.probability), device=self.probability.device)
        gone = (position >= self.count) if previous is None else (position >= self.count) & (position < previous)
        return torch.where(gone, 0.0, 1.0) - self.probability.detach() + self.probability


class RateProxy(nn.Module):
    """Logits over numbers of patches to keep: all, all but `granularity`, and so on, at least 1 (section 3.2).

    Parameters
    ----------
    patches
        How many there are.
    granularity
        Step between two candidates; more than `patches` leaves a single one, which keeps all.
    """

    def __init__(self, patches: int, granularity: int = 1) -> None:
        super().__init__()
        self.patches = patches
        candidates = torch.arange(patches, 0, -granularity)
        self.register_buffer("candidates", candidates, persistent=False)
        self.logits = nn.Parameter(torch.zeros(len(candidates)))

    def forward(self) -> Rate:
        """Return the distribution's numbers."""
        share = self.logits.double().softmax(0)  # float64: an expectation of 196.0000001 would be rounded up to 197
        candidates: Tensor = self.candidates  # type: ignore[assignment]
        expected = share @ candidates.double() + 1
        kept = torch.ceil(expected.detach() - _ROUNDING) - expected.detach() + expected
        position = torch.arange(self.patches + 1, device=candidates.device)
        probability = (position[:, None] <= candidates).double() @ share
        return Rate(kept.float(), probability.float())

    @property
    def kept(self) -> int:
        """Tokens kept now, the class token among them."""
        return self.forward().count

    def probability(self) -> Float[Tensor, " tokens"]:
        """Return the probability that each token stays."""
        return self.forward().probability

    def mask(self, previous: int | None = None) -> Float[Tensor, " tokens"]:
        """See `Rate.mask`."""
        return self.forward().mask(previous)


class Rates(nn.Module):
    """Two rate proxies for every block, of pruning and of merging; the first block keeps everything.

    Parameters
    ----------
    layers, patches
        Sizes of the model.
    granularity
        See `RateProxy`.
    prunes, merges
        False: nothing is pruned, or nothing merged (ablations).
    """

    def __init__(
        self, layers: int, patches: int, granularity: int = 1, *, prunes: bool = True, merges: bool = True
    ) -> None:
        super().__init__()

        def proxies(on: bool) -> nn.ModuleList:
            steps = [granularity if on and layer else patches + 1 for layer in range(layers)]
            return nn.ModuleList(RateProxy(patches, step) for step in steps)

        self.patches, self.prune, self.merge = patches, proxies(prunes), proxies(merges)

    def forward(self) -> list[tuple[Rate, Rate]]:
        """Return the rates of pruning and merging of every block."""
        return [(prune(), merge()) for prune, merge in zip(self.prune, self.merge, strict=True)]

    def schedule(self) -> RateSchedule:
        """Return what they say, numbers that do nothing replaced by what is there already."""
        pruned, merged, left = [], [], self.patches + 1
        for prune, merge in self.forward():
            pruned.append(min(left, prune.count))
            left = min(pruned[-1], merge.count)
            merged.append(left)
        return RateSchedule(prune_kept=tuple(pruned), merge_kept=tuple(merged), patches=self.patches)


def expected_macs(rates: Sequence[tuple[Rate, Rate]], anatomy: Anatomy) -> Float[Tensor, ""]:
    """Multiply-adds under these rates: a block's tokens are the fewest of three, backward both of its rates (eq. 9)."""
    total = rates[0][0].kept.new_tensor(float(anatomy.fixed), dtype=torch.float64)
    others = anatomy.prefix - 1  # the numbers count one class token
    entering: Any = float(anatomy.patches + anatomy.prefix)
    entered: float = entering
    for prune, merge in rates:
        pruned, merged = prune.kept.double() + others, merge.kept.double() + others
        fewest = min(entered, pruned.item(), merged.item())
        leaving = fewest + (pruned - pruned.detach()) + (merged - merged.detach())
        total = total + 4 * entering * anatomy.dim**2 + 2 * entering * entering * anatomy.dim
        total = total + 2 * leaving * anatomy.dim * anatomy.hidden
        entering, entered = leaving, fewest
    return total
