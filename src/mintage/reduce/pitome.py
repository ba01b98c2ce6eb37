"""PiToMe: merge tokens that lie in large clusters of similar ones, and protect those that stand alone.

Tran, Nguyen et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024, arXiv 2405.16148.
Between attention and MLP every patch token gets an *energy*: how much of the image is like it. Tokens of high energy
(background) are merged in pairs, tokens of low energy (small objects) stay as they are. Nothing is trained.

The paper's algorithm is the variant ``"energy"``; its code for DeiT uses another one, ``"matching"``, in the first half
of the blocks, and the code for MAE in the second half. Both are here.

Not here: the text variant with its Gaussian energy; exact ties, which `argsort` may break either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import check_literals, option
from mintage.reduce.contract import Evidence, TokenState
from mintage.reduce.core.scheduled import Scheduled

__all__ = ["MARGINS", "PiToMe", "energy", "plan"]

Variant = Literal["energy", "matching"]

MARGINS: dict[str, dict[str, float]] = {
    "paper": {"margin_start": 0.9, "margin_slope": 0.9},
    "deit": {"margin_start": 0.75, "margin_slope": 0.75},
    "augreg": {"margin_start": 0.9, "margin_slope": 0.9},
    "blip": {"margin_start": 0.9, "margin_slope": 0.9},
    "clip": {"margin_start": 0.9, "margin_slope": 0.9},
    "openai-clip": {"margin_start": 0.95, "margin_slope": 0.95},
    "blip-2": {"margin_start": 0.75, "margin_slope": 0.4},
}
"""Margins that the authors' code uses for families of models: ``PiToMe(**MARGINS["deit"])``."""


def _cosines(keys: Tensor) -> Float[Tensor, "batch patches patches"]:
    unit = functional.normalize(keys.float() if keys.dtype.itemsize < 4 else keys, dim=-1)
    with torch.autocast(keys.device.type, enabled=False):
        return unit @ unit.transpose(1, 2)


def energy(
    keys: Float[Tensor, "batch patches dim"], margin: float | int, alpha: float | int = 1.0
) -> Float[Tensor, "batch patches"]:
    """Redundancy of every token: the mean of ``ELU(cos - margin)`` over all tokens, itself included (eq. 4).

    It lies in [-alpha, 1 - margin]. The paper prints the upper branch as ``cos``; the authors' code, which was
    measured, has the continuous ``cos - margin``, and so has this.

    Parameters
    ----------
    keys
        Attention keys of the patches, averaged over heads.
    margin
        Cosine from which on two tokens count as alike.
    alpha
        How much unlike tokens lower the energy.
    """
    return _energy(_cosines(keys), margin, alpha)


def _energy(similarity: Tensor, margin: float | int, alpha: float | int) -> Tensor:
    return functional.elu(similarity - margin, alpha=alpha).mean(-1)


@check_literals
@torch.no_grad()
def plan(
    keys: Float[Tensor, "batch patches dim"],
    remove: int,
    *,
    margin: float | int,
    alpha: float | int = 1.0,
    variant: Variant = "energy",
) -> Int[Tensor, "batch patches"]:
    """Tell for every patch into which of ``patches - remove`` slots it goes (algorithm 1).

    Parameters
    ----------
    keys
        As of `energy`.
    remove
        How many tokens vanish, half of them at most.
    margin, alpha
        As of `energy`.
    variant
        ``"energy"``: the ``2 * remove`` tokens of highest energy are mergeable; every second of them merges into the
        most similar of the others. Slots: the protected tokens by falling energy, then those merged into.
        ``"matching"``: the same over all tokens, but only the `remove` most similar pairs merge. Slots: every second
        token that did not merge, by falling similarity, then the others by falling energy.

    Raises
    ------
    UserError
        `remove` is more than half of the tokens.
    """
    patches = keys.shape[1]
    if not 0 <= remove <= patches // 2:
        raise UserError(f"remove={remove} of {patches} tokens; pairs can remove {patches // 2} at most")
    similarity = _cosines(keys)
    order = _energy(similarity, margin, alpha).argsort(dim=1, descending=True, stable=True)
    if remove == 0:
        return order.argsort(dim=1)
    candidates = order[:, : 2 * remove] if variant == "energy" else order
    source, target = candidates[:, ::2], candidates[:, 1::2]
    pairs = _take(_take(similarity, source).transpose(1, 2), target).transpose(1, 2)  # [batch, sources, targets]
    best = pairs.max(-1)
    if variant == "energy":
        alone = order[:, 2 * remove :]
        joining, joined = source, best.indices
    else:
        ranked = best.values.argsort(dim=1, descending=True, stable=True)
        alone = source.gather(1, ranked[:, remove:])
        joining = source.gather(1, ranked[:, :remove])
        joined = best.indices.gather(1, ranked[:, :remove])
    stays = torch.cat([alone, target], 1)
    slot = torch.empty_like(order)
    slot.scatter_(1, stays, torch.arange(patches - remove, device=keys.device).expand_as(stays))
    return slot.scatter_(1, joining, joined + alone.shape[1])


def _take(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class PiToMe(Scheduled):
    """Spectrum-preserving token merging (Tran, Nguyen et al. 2024).

    The paper keeps the same ratio of the patches in every layer, e.g. 0.9, 0.925 or 0.95. The margin of layer l of L is
    ``start - slope * l / L``; see `MARGINS`.

    Raises
    ------
    UserError
        A margin is no cosine, or `alpha` is negative. On attaching: a list of counts that more than halves the tokens.
    """

    conserves: ClassVar[bool] = True
    pairs: ClassVar[bool] = True

    margin_start: float | int = option(0.9, "Margin of the first layer, a cosine.", least=-1, most=1)
    margin_slope: float | int = option(0.9, "How much the margin shrinks over all layers.")
    alpha: float | int = option(1.0, "How much unlike tokens lower the energy.", least=0)
    variant: Literal["energy", "matching", "auto", "auto-mae"] = option(
        "energy",
        "See plan(); auto is matching in the first half of the layers and energy behind it (the authors' DeiT), "
        "auto-mae the reverse (their MAE).",
    )
    proportional_attention: bool = option(
        True,
        "Count a token in attention as many times as it has members: the paper does, for supervised models; the "
        "authors' code for DeiT does not. Off for MAE.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.margin_start - self.margin_slope <= 1:
            raise UserError(
                f"margin_start={self.margin_start:g} with margin_slope={self.margin_slope:g} leaves [-1, 1], where "
                "cosines are; pass e.g. 0.9 and 0.9"
            )

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token by its size, see `proportional_attention`."""
        return self.proportional_attention

    def margin(self, layer: int, layers: int) -> float:
        """Return the margin of a layer: it shrinks with depth (section 3.2)."""
        return self.margin_start - self.margin_slope * layer / layers

    def variant_of(self, layer: int, layers: int) -> Variant:
        """Return what a layer does."""
        if self.variant in ("energy", "matching"):
            return self.variant
        first = layer < (layers + 1) // 2
        return "matching" if first == (self.variant == "auto") else "energy"

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Merge the redundant tokens, weighted by size."""
        slot = plan(
            evidence.metric()[:, state.prefix :],
            state.patches - keep,
            margin=self.margin(state.layer, state.layers),
            alpha=self.alpha,
            variant=self.variant_of(state.layer, state.layers),
        )
        return state.merge(slot, keep)

    @classmethod
    def tiny(cls) -> PiToMe:
        """Return one with both variants."""
        return cls(schedule="ratio=0.7", variant="auto")
