"""EMS: per head, evict what matters to nobody and merge what is redundant into what is kept (arXiv 2412.08521).

Written from the paper's abstract, its public reviews and its tables: there is no public code. Details that these leave
open are named where they are decided.

Not here: the paper's Triton kernel for column sums (the same sums are computed a block of queries at a time), budgets
that differ by head, sparse storage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.attention import attention_weights, weights_by_column
from mintage.keep.contract import Step
from mintage.keep.evict import Evictor, padding
from mintage.keep.storage import KeptLayer

__all__ = [
    "CENTRE",
    "EMS",
    "EVICTED",
    "IRRELEVANT",
    "MERGED",
    "GlobalLocal",
    "MergedKV",
    "align",
    "evict_then_merge",
    "global_local_score",
    "nearest_centre",
]

IRRELEVANT, MERGED, CENTRE = 0, 1, 2
"""Categories of a token: evicted, to be merged, kept as a class centre."""

EVICTED = -1
"""Assignment of an irrelevant token."""

_COMBINE = ("max", "sum")
_WEIGHTS = ("mean", "score")
_KEYS = ("mean", "rescaled", "centre")


class GlobalLocal(NamedTuple):
    """Attention received, averaged over the query heads of a group."""

    total: Float[Tensor, "batch groups tokens"]
    """Global score: from all queries."""
    local: Float[Tensor, "batch groups tokens"]
    """Local score: from the last ones."""
    combined: Float[Tensor, "batch groups older"]
    """Both on one scale, of the tokens before the window."""


class MergedKV(NamedTuple):
    """What `evict_then_merge` makes of S tokens: c centres, then the window."""

    key: Float[Tensor, "batch groups budget dim"]
    value: Float[Tensor, "batch groups budget dim"]
    member_count: Float[Tensor, "batch groups centres"]
    """Tokens that each centre stands for, itself included."""
    centre_index: Int[Tensor, "batch groups centres"]
    """Which of the older tokens are centres, ascending."""
    category: Int[Tensor, "batch groups older"]
    """`IRRELEVANT`, `MERGED` or `CENTRE`."""
    assignment: Int[Tensor, "batch groups older"]
    """Centre of every older token; c is the zero class, `EVICTED` is irrelevant."""


# -- 1. the score -----------------------------------------------------------------------------------------------------


def align(
    total: Float[Tensor, "batch groups older"],
    local: Float[Tensor, "batch groups older"],
    combine: Literal["max", "sum"] = "max",
) -> Float[Tensor, "batch groups older"]:
    """Scale the global score to the local one's mean over these tokens, and take the larger one, or the sum.

    The paper's "mean alignment"; which of the two it takes is not public, and the larger one is the default here.
    """
    aligned = total * (local.sum(-1, keepdim=True) / total.sum(-1, keepdim=True).clamp_min(_tiny(total)))
    return torch.maximum(aligned, local) if combine == "max" else aligned + local


def global_local_score(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch groups tokens dim"],
    window: int,
    *,
    scaling: float | None = None,
    visible: Callable[[int, int], Tensor | None] | None = None,
    combine: Literal["max", "sum"] = "max",
    chunk: int = 256,
) -> GlobalLocal:
    """Score the tokens of a prompt by the attention that all queries, and the last `window`, pay them.

    Parameters
    ----------
    query, key
        After rotation. H query heads, G key-value heads.
    window
        Last tokens: their queries make the local score, and they themselves are not scored against each other.
    scaling
        Factor of the attention scores; default 1 / sqrt(d).
    visible
        ``visible(start, stop)`` masks these queries; default causal.
    combine
        See `align`.
    chunk
        Queries at a time: no matrix of tokens x tokens is ever held.
    """
    tokens, dim = query.shape[2:]
    own = torch.arange(tokens, device=query.device)
    settings = {"scaling": dim**-0.5 if scaling is None else scaling, "chunk": chunk}
    see = visible or (lambda start, stop: (own <= own[start:stop, None])[None, None])
    total = weights_by_column(query, key, visible=see, **settings)
    first = max(tokens - window, 0)
    local = weights_by_column(query[:, :, first:], key, visible=lambda a, b: see(a + first, b + first), **settings)
    return GlobalLocal(total, local, align(total[..., :first], local[..., :first], combine))


# -- 2. and 3. three classes per head, and the merge ------------------------------------------------------------------


def evict_then_merge(
    key: Float[Tensor, "batch groups tokens dim"],
    value: Float[Tensor, "batch groups tokens dim"],
    score: Float[Tensor, "batch groups older"],
    *,
    window: int,
    budget: int,
    irrelevant_mass: float,
    tau: int | float,
    weights: Literal["mean", "score"] = "mean",
    keys: Literal["mean", "rescaled", "centre"] = "mean",
    count: Float[Tensor, "batch groups older"] | None = None,
) -> MergedKV:
    """Reduce every head to `budget` entries.

    Parameters
    ----------
    key, value
        Of all S tokens.
    score
        Of the S - `window` older ones, not negative; minus infinity for padding, which is neither merged nor, while
        there are other tokens, a centre.
    window
        Last tokens, which stay as they are.
    budget
        Entries afterwards; ``budget - window`` of them are centres: the highest scores, of equal ones the older.
    irrelevant_mass
        The lowest scores whose sum is at most this share of all older tokens' are irrelevant, and evicted.
    tau
        Least similarity, cos(K, K') cos(V, V'), for a token to be merged into its most similar centre; the others go
        to the zero class, which is dropped. Above 1 nothing is merged.
    weights
        Of the members in the mean: by the tokens they stand for, or by score.
    keys
        Of a merged entry: the mean; the mean at the members' mean norm, which averaging rotated keys shortens; or the
        centre's own, so that only values are merged.
    count
        Tokens that each older entry stands for already, where entries were merged before; default 1.

    Raises
    ------
    ValueError
        The scores are not of the tokens before the window, or the budget is below the window or above what there is.
    """
    older, centres = score.shape[2], budget - window
    if older != key.shape[2] - window or not 0 <= centres <= older:
        raise ValueError(
            f"budget={budget} and window={window} do not fit {key.shape[2]} tokens with {older} scores; "
            f"scores are of the tokens before the window, and the budget lies between window and tokens"
        )
    count = torch.ones_like(score) if count is None else count
    centre_index, category = _classes(score, centres, irrelevant_mass)
    old_key, old_value = _wide(key[:, :, :older]), _wide(value[:, :, :older])
    own_key, own_value = _at(old_key, centre_index), _at(old_value, centre_index)
    # Every older token has exactly one slot, the last being the zero class: evicted and merged tokens alike.
    slot = nearest_centre(old_key, old_value, own_key, own_value, tau)
    slot = slot.masked_fill(category == IRRELEVANT, centres)
    own_slots = torch.arange(centres, device=key.device).expand_as(centre_index)
    slot = slot.scatter(2, centre_index, own_slots)

    weight = (count if weights == "mean" else score.clamp_min(_tiny(score))).to(old_key.dtype)[..., None]
    columns = [old_value * weight, weight, count[..., None].to(old_key.dtype)]
    if keys != "centre":
        columns += [old_key * weight, old_key.norm(dim=-1, keepdim=True) * weight]
    summed = _scatter_add(torch.cat(columns, -1), slot, centres + 1)[:, :, :centres]
    sums = summed.split([c.shape[-1] for c in columns], -1)
    total = sums[1].clamp_min(_tiny(weight))
    member_count = sums[2][..., 0]
    alone = (_members(slot, centres) == 1)[..., None]  # rounding shall not touch an entry that nothing was merged into
    merged_value = torch.where(alone, own_value, sums[0] / total)
    merged_key = own_key
    if keys != "centre":
        mean = sums[3] / total
        if keys == "rescaled":
            mean = mean * (sums[4] / total / mean.norm(dim=-1, keepdim=True).clamp_min(_tiny(mean)))
        merged_key = torch.where(alone, own_key, mean)
    return MergedKV(
        key=torch.cat((merged_key.to(key.dtype), key[:, :, older:]), 2),
        value=torch.cat((merged_value.to(value.dtype), value[:, :, older:]), 2),
        member_count=member_count.to(count.dtype),
        centre_index=centre_index,
        category=category,
        assignment=slot.masked_fill(category == IRRELEVANT, EVICTED),
    )


def _classes(score: Tensor, centres: int, irrelevant_mass: float) -> tuple[Tensor, Tensor]:
    """Return the centres, ascending, and the category of every token."""
    ranked = score.sort(dim=-1, descending=True, stable=True)
    mass = ranked.values.clamp_min(0).double()  # in float64: a share is compared with a threshold
    tail = mass.flip(-1).cumsum(-1).flip(-1)  # of a token and all that rank below it
    ranks = torch.arange(score.shape[2], device=score.device)
    irrelevant = (tail <= irrelevant_mass * mass.sum(-1, keepdim=True)) | ranked.values.isneginf()
    category = torch.where(irrelevant, IRRELEVANT, MERGED).masked_fill(ranks < centres, CENTRE)
    category = torch.empty_like(category).scatter_(2, ranked.indices, category)
    return ranked.indices[..., :centres].sort(-1).values, category


def nearest_centre(
    key: Float[Tensor, "batch groups older dim"],
    value: Float[Tensor, "batch groups older dim"],
    centre_key: Float[Tensor, "batch groups centres dim"],
    centre_value: Float[Tensor, "batch groups centres dim"],
    tau: int | float,
    *,
    chunk: int = 4096,
) -> Int[Tensor, "batch groups older"]:
    """Return each token's most similar centre, or c, the zero class, where the similarity is below `tau`.

    Similarity is cos(K, K') cos(V, V'), and 0 unless both are above 0: two opposite vectors are no match. `chunk`
    tokens at a time.
    """
    centres = centre_key.shape[2]
    if centres == 0 or tau > 1:
        return torch.full(key.shape[:3], centres, device=key.device)
    unit_key, unit_value = _unit(centre_key).transpose(-1, -2), _unit(centre_value).transpose(-1, -2)
    nearest = []
    for some_key, some_value in zip(key.split(chunk, 2), value.split(chunk, 2), strict=True):
        similarity = (_unit(some_key) @ unit_key).clamp_min_(0) * (_unit(some_value) @ unit_value).clamp_min_(0)
        best = similarity.max(-1)
        nearest.append(best.indices.masked_fill(best.values < tau, centres))
    return torch.cat(nearest, 2)


def _scatter_add(rows: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Sum rows [B, G, n, d] by slot, all heads at once: [B, G, slots, d]."""
    empty = rows.new_zeros(*rows.shape[:2], slots, rows.shape[3])
    return empty.scatter_add_(2, slot[..., None].expand_as(rows), rows)


def _members(slot: Tensor, centres: int) -> Tensor:
    return _scatter_add(torch.ones_like(slot)[..., None], slot, centres + 1)[:, :, :centres, 0]


def _at(states: Tensor, index: Tensor) -> Tensor:
    return states.gather(2, index[..., None].expand(*index.shape, states.shape[3]))


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(_tiny(x))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


# -- the policy -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class EMS(Evictor):
    """Evict-then-merge with global-local scores.

    In decoding scores go on accumulating, and when the budget overflows the entries are evicted and merged again,
    weighted by the tokens that they stand for. The local score then decays by 1 - 1 / window with every query, so that
    it still sums to `window`: the last queries themselves need not be held.

    Parameters
    ----------
    window
        Newest tokens, kept as they are; their queries make the local score.
    irrelevant_mass, tau, weights, keys
        See `evict_then_merge`. The paper merges keys and values alike (``"mean"``).
    combine
        How the two scores are combined, see `align`.
    mass_correction
        Add the logarithm of the number of members to an entry's attention scores, so that merging equal tokens changes
        nothing (not in the paper).
    """

    irrelevant_mass: float = 0.05
    tau: int | float = 0.5
    combine: Literal["max", "sum"] = "max"
    weights: Literal["mean", "score"] = "mean"
    keys: Literal["mean", "rescaled", "centre"] = "mean"
    mass_correction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.irrelevant_mass < 1:
            raise UserError(f"irrelevant_mass={self.irrelevant_mass} is outside [0, 1); pass a small share, e.g. 0.05")
        if not self.tau >= 0:
            raise UserError(f"tau={self.tau} is below every similarity; pass 0 to merge all, above 1 to merge none")
        for name, known in (("combine", _COMBINE), ("weights", _WEIGHTS), ("keys", _KEYS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; pass one of: {', '.join(known)}")

    def take(self, layer: KeptLayer, key: Tensor, value: Tensor) -> None:
        """Append new tokens, each with its two scores and standing for itself alone."""
        fresh = key.new_zeros(key.shape[:3], dtype=torch.float32)
        layer.append(key=key, value=value, total=fresh, local=fresh, members=fresh + 1)

    def bias(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"] | None:
        """Return the logarithm of the member counts, if they are to correct the mass."""
        return None if layer.complete or not self.mass_correction else layer["members"].log()

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Accumulate the attention of all queries, and that of the last ones."""
        key, bias, queries = layer["key"], self.bias(layer), step.queries
        first = max(queries - self.window, 0)
        weights = attention_weights(
            step.query[:, :, first:], key, scaling=step.scaling, visible=step.visible(layer, first), bias=bias
        ).mean(2)
        recent = weights.sum(2)
        layer["total"].add_(recent)
        if first:
            earlier = weights_by_column(
                step.query[:, :, :first],
                key,
                scaling=step.scaling,
                visible=lambda start, stop: step.visible(layer, start, stop),
                bias=bias,
            )
            layer["total"].add_(earlier)
        if queries >= self.window:
            layer["local"].copy_(recent)
        else:
            decay = 1 - 1 / self.window
            ages = torch.arange(queries - 1, -1, -1, device=key.device)
            layer["local"].mul_(decay**queries).add_((weights * (decay**ages)[:, None]).sum(2))

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Return the combined score of what is older than the window, and infinity for the window."""
        older = layer.entries - self.window
        score = layer["total"].new_full(layer["total"].shape, torch.inf)
        score[..., :older] = align(layer["total"][..., :older], layer["local"][..., :older], self.combine)
        pads = padding(layer)
        return score if pads is None else score.masked_fill(pads, -torch.inf)

    def shrink(self, layer: KeptLayer, target: int) -> None:
        """Evict and merge what is older than the window."""
        older = layer.entries - self.window
        merged = evict_then_merge(
            layer["key"],
            layer["value"],
            self.importance(layer)[..., :older],
            window=self.window,
            budget=target,
            irrelevant_mass=self.irrelevant_mass,
            tau=self.tau,
            weights=self.weights,
            keys=self.keys,
            count=layer["members"][..., :older],
        )
        # A merged entry received what its members received.
        centres = merged.centre_index.shape[2]
        slot = merged.assignment.masked_fill(merged.assignment == EVICTED, centres)
        scores = torch.stack((layer["total"], layer["local"]), -1)[:, :, :older]
        scores = _scatter_add(scores, slot, centres + 1)[:, :, :centres]
        window = torch.arange(older, layer.entries, device=slot.device).expand(*slot.shape[:2], -1)
        layer.keep(torch.cat((merged.centre_index, window), 2))
        layer["key"].copy_(merged.key)
        layer["value"].copy_(merged.value)
        layer["members"][..., :centres] = merged.member_count
        layer["total"][..., :centres] = scores[..., 0]
        layer["local"][..., :centres] = scores[..., 1]

    @classmethod
    def tiny(cls) -> EMS:
        """Make one for the laws."""
        return cls(budget=12, window=4, every=2, tau=0.1)
