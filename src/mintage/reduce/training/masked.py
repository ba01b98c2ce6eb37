"""DiffRate while it is searched: nothing is removed, masks stand for removal (Chen et al., ICCV 2023, section 3.3).

Not here: how many are masked (`mintage.reduce.training.rates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.diffrate import merge_into_important
from mintage.reduce.training.rates import Rate, Rates

__all__ = ["MaskedDiffRate", "masked_softmax", "reduce_masked"]


def masked_softmax(
    scores: Float[Tensor, "batch heads queries tokens"], mask: Float[Tensor, "batch tokens"], eps: float = 1e-6
) -> Float[Tensor, "batch heads queries tokens"]:
    """Softmax over the tokens whose mask is 1, differentiable in the mask; every token sees itself (eq. 8).

    ``(e M + eps / N) / (sum of e M + eps)`` with ``e = exp(scores - max)``: `eps` keeps masked rows finite.
    """
    tokens = scores.shape[-1]
    itself = torch.eye(tokens, dtype=scores.dtype, device=scores.device)
    seen = mask[:, None, None, :].to(scores.dtype) * (1 - itself) + itself
    held = (scores - scores.amax(-1, keepdim=True)).exp() * seen
    return (held + eps / tokens) / (held.sum(-1, keepdim=True) + eps)


def reduce_masked(
    x: Float[Tensor, "batch tokens dim"],
    importance: Float[Tensor, "batch patches"],
    mask: Float[Tensor, "batch tokens"],
    size: Float[Tensor, "batch tokens 1"],
    prune: Rate,
    merge: Rate,
    *,
    prefix: int = 1,
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens 1"]]:
    """Sort, mask what is pruned, merge, mask what was merged: what `DiffRate.reduce` does, with all tokens in place.

    Parameters
    ----------
    x
        The residual stream between attention and MLP.
    importance
        The class token's attention to the patches.
    mask
        1 for tokens that are still there; as many in every image.
    size
        What tokens stand for.
    prune, merge
        Rates of this block.
    prefix
        Tokens before the patches.

    Returns
    -------
    x, mask, size
        Sorted by importance. A destination is the plain mean of itself and its sources; a source adds its own size
        times the cosine, at least 1, to its destination's (the authors clamp in training only).
    """
    order = importance.detach().argsort(dim=1, descending=True, stable=True) + prefix
    order = torch.cat([torch.arange(prefix, device=x.device).expand(len(x), -1), order], 1)
    mask, size = mask.gather(1, order), size.gather(1, order[..., None])
    x = x.gather(1, order[..., None].expand_as(x))
    others = prefix - 1  # the rates count one class token

    def over(rate: Rate, previous: int) -> Tensor:
        return functional.pad(rate.mask(previous), (others, 0), value=1.0)

    last = int(mask[0].detach().sum().item()) - others
    if prune.count < last:
        mask = mask * over(prune, last)
    left = min(last, prune.count)
    if merge.count < left:
        x, size = _merged(x, size, merge.count + others, left + others, prefix)
        mask = mask * over(merge, left)
    return x, mask, size


def _merged(x: Tensor, size: Tensor, keep: int, left: int, prefix: int) -> tuple[Tensor, Tensor]:
    index, cosine = merge_into_important(x[:, prefix:left].detach(), keep - prefix)
    index = index[..., None] + prefix
    sources = x[:, keep:left]
    number = torch.ones_like(size).scatter_add(1, index, torch.ones_like(size[:, keep:left]))
    total = x.scatter_add(1, index.expand_as(sources), sources)
    size = size.clamp_min(1)
    gain = (size[:, keep:left] * cosine[..., None].to(size.dtype)).clamp_min(1)
    return total / number.to(x.dtype), size.scatter_add(1, index, gain)


class _Carried:
    """What one forward of the masked model carries from layer to layer."""

    mask: Tensor
    importance: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedDiffRate(Reducer):
    """DiffRate as it is trained: every token stays, masks stand for removal.

    Parameters
    ----------
    rates
        Of pruning and merging, by block.
    """

    rates: Sequence[tuple[Rate, Rate]] = ()
    _carried: _Carried = field(default_factory=_Carried, init=False, repr=False)

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return all patches.

        Raises
        ------
        UserError
            The rates are for other sizes.
        """
        if len(self.rates) != anatomy.layers or len(self.rates[0][0].probability) != anatomy.patches + 1:
            raise UserError(
                f"rates for {len(self.rates)} blocks do not fit a model of {anatomy.layers} blocks and "
                f"{anatomy.patches} patches; search with images of the model's own size"
            )
        return (anatomy.patches,) * anatomy.layers

    @property
    def masks(self) -> bool:
        """Always."""
        return True

    @property
    def proportional(self) -> bool:
        """Always, as in `DiffRate`."""
        return True

    @property
    def attends(self) -> bool:
        """Always: the softmax is a masked one."""
        return True

    def attend(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Return attention among the tokens that are still there."""
        query, key = evidence.query.float(), evidence.key.float()
        run, prefix = self._carried, key.shape[2] + 1 - len(self.rates[0][0].probability)
        if layer == 0:
            run.mask = query.new_ones(query.shape[0], query.shape[2])
        with torch.autocast(query.device.type, enabled=False):
            scores = query @ key.transpose(2, 3) * evidence.scaling
            if evidence.bias is not None:
                scores = scores + evidence.bias.float()
            weights = masked_softmax(scores, run.mask)
        row = weights[:, :, 0] if prefix else weights.mean(2)
        run.importance = row.mean(1)[:, prefix:]
        return weights.to(evidence.value.dtype) @ evidence.value

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Mask and merge."""
        prune, merge = self.rates[state.layer]
        x, self._carried.mask, size = reduce_masked(
            state.x, self._carried.importance, self._carried.mask, state.size, prune, merge, prefix=state.prefix
        )
        return replace(state, x=x, size=size)

    @classmethod
    def tiny(cls) -> MaskedDiffRate:
        """Return one for models of 4 layers and 16 patches."""
        return cls(rates=Rates(4, 16)())
