"""The rivals of the papers' methods, under the same contract: ToMe, random and class-attention dropping, pooling.

Not here: ToMe's edge-based variants for segmentation and diffusion; EViT's fused token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.options import option
from mintage.reduce.contract import Evidence, TokenState
from mintage.reduce.core.schedule import Schedule
from mintage.reduce.core.scheduled import SCHEDULE, Scheduled

__all__ = ["AveragePool", "ClassAttention", "RandomDrop", "ToMe", "bipartite_matching", "received_attention"]


# -- ToMe ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bipartite_matching(
    metric: Float[Tensor, "batch tokens dim"], remove: int, *, prefix: int = 1
) -> Int[Tensor, "batch patches"]:
    """Tell for every patch into which of ``patches - remove`` slots it goes (Bolya et al., section 3 and appendix D).

    Tokens alternate between two sets by their position in the sequence, prefix tokens counted but in neither. Each of
    the first set is compared with all of the second; the `remove` most similar pairs merge, several into one if so.
    Slots: what is left of the first set, in sequence order, then the second set.

    Parameters
    ----------
    metric
        What is compared, of all tokens: their keys, averaged over heads.
    remove
        How many tokens vanish; half of the patches at most.
    prefix
        Leading tokens that stay out.
    """
    unit = functional.normalize(metric[:, prefix:].float(), dim=-1)
    patches, first = unit.shape[1], prefix % 2
    with torch.autocast(unit.device.type, enabled=False):
        scores = unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)
    best = scores.max(-1)
    ranked = best.values.argsort(dim=1, descending=True)
    merged, stays = ranked[:, :remove], ranked[:, remove:].sort(1).values
    alone = stays.shape[1]
    positions = torch.arange(patches - remove, device=metric.device)
    source = torch.empty_like(ranked)
    source.scatter_(1, stays, positions[:alone].expand_as(stays))
    source.scatter_(1, merged, alone + best.indices.gather(1, merged))
    slot = ranked.new_empty(len(ranked), patches)
    slot[:, first::2] = source
    slot[:, 1 - first :: 2] = positions[alone:]
    return slot


@dataclass(frozen=True, kw_only=True, eq=False)
class ToMe(Scheduled):
    """Token merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.03461).

    Unlike the authors' code, every prefix token stays out (theirs merges registers), and what is left of the first set
    keeps its order also in models without a class token.

    The paper removes a constant number, e.g. ``"r=8"``, or a falling one, ``"r=8-0"``.

    Raises
    ------
    UserError
        On attaching: a list of counts that more than halves the tokens.
    """

    conserves: ClassVar[bool] = True
    pairs: ClassVar[bool] = True

    schedule: Schedule | str = option("r=8", SCHEDULE)
    proportional_attention: bool = option(
        True, "Count a token in attention as many times as it has members (eq. 1); off for MAE models in the paper."
    )

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size, see `proportional_attention`."""
        return self.proportional_attention

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Merge the most similar pairs, weighted by size."""
        return state.merge(bipartite_matching(evidence.metric(), state.patches - keep, prefix=state.prefix), keep)

    @classmethod
    def tiny(cls) -> ToMe:
        """Return one that removes enough to be seen."""
        return cls(schedule="r=4")


# -- dropping --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomDrop(Scheduled):
    """Drops patches at random: what any choice must beat.

    Chance is a hash of a token's key, place and layer: every image loses others, and the same ones in any batch.
    """

    seed: int = option(0, "Another one, other patches.", least=0, below=2**63)

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Keep the patches of highest chance."""
        chance = _chance(evidence.metric()[:, state.prefix :], self.seed * state.layers + state.layer)
        return state.keep(_highest(chance, keep))

    @classmethod
    def tiny(cls) -> RandomDrop:
        """Return one that removes enough to be seen."""
        return cls(schedule="ratio=0.7")


@torch.no_grad()
def _chance(keys: Tensor, seed: int) -> Float[Tensor, "batch patches"]:
    """Numbers in [0, 1), uniform over places whatever the keys are: a phase per place, turned by the key."""
    phases = _hash(torch.arange(keys.shape[1], device=keys.device, dtype=torch.float64) + 1, seed)
    direction = _hash(torch.arange(keys.shape[2], device=keys.device, dtype=torch.float64) + 7919, seed) - 0.5
    turns = 16 * (keys.double() * direction).sum(-1)  # many per standard deviation of the keys, few per rounding error
    return ((turns + phases) % 1).float()


def _hash(numbers: Tensor, seed: int) -> Tensor:
    return (torch.sin(numbers * 12.9898 + (seed % 9973) * 78.233) * 43758.5453) % 1


def _highest(scores: Tensor, keep: int) -> Tensor:
    """Places of the `keep` highest, in sequence order."""
    return scores.topk(keep, dim=1).indices.sort(1).values


@torch.no_grad()
def received_attention(evidence: Evidence, prefix: int) -> Float[Tensor, "batch patches"]:
    """Attention that every patch gets from the class token, mean over heads; without one, from all tokens."""
    received = evidence.row(0).mean(1) if prefix else evidence.attention().mean((1, 2))
    return received[:, prefix:]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassAttention(Scheduled):
    """Keeps the patches that the class token attends to most (Liang et al., EViT, ICLR 2022, arXiv 2202.07800).

    Without EViT's fusion of the others into one token. A model without a class token (SigLIP) is asked for the mean
    attention that a patch receives, which needs the whole matrix. EViT reduces in three of twelve layers, e.g.
    ``"ratio=0.7@3x6x9"``.
    """

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Keep the most attended."""
        return state.keep(_highest(received_attention(evidence, state.prefix), keep))

    @classmethod
    def tiny(cls) -> ClassAttention:
        """Return one that removes enough to be seen."""
        return cls(schedule="ratio=0.7")


# -- pooling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool(Scheduled):
    """Averages neighbours, whatever they hold: what any merging must beat.

    A schedule asks for any number of tokens, and a grid does not have any number of squares. So windows are runs of the
    patches in Z-order, as even as possible: four of them are a square of 2x2, two are half of one. Patch i of n goes
    into window ``floor(i * kept / n)``. Patches that are no square grid are taken row by row.
    ``"ratio=0.5@4x8"`` halves twice.
    """

    conserves: ClassVar[bool] = True

    proportional_attention: bool = option(True, "Count a token in attention as many times as it has members.")

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size, see `proportional_attention`."""
        return self.proportional_attention

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Merge the windows, weighted by size."""
        position = torch.arange(state.patches, device=state.x.device)
        if state.patches == state.input_patches:  # merged ones follow each other as their windows do
            position = _z_order(position)
        window = position * keep // state.patches
        return state.merge(window.expand(state.x.shape[0], -1), keep)

    @classmethod
    def tiny(cls) -> AveragePool:
        """Return one that removes enough to be seen."""
        return cls(schedule="ratio=0.7")


def _z_order(position: Int[Tensor, " patches"]) -> Int[Tensor, " patches"]:
    """Where every patch of a square grid stands if quarters of the grid, and of the quarters, follow each other."""
    side = math.isqrt(len(position))
    if side * side != len(position):
        return position
    row, column = position // side, position % side
    code = torch.zeros_like(position)
    for bit in range(side.bit_length()):
        code += (column >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1
    return code.argsort().argsort()
