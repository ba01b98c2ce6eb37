"""EMS: per head, keep what matters, drop what matters to nobody, and merge the rest into what is kept.

Three classes of older tokens per head, by a score that balances all queries (global) and the last ones (local):
centres, which are kept; irrelevant tokens, which carry a small share of the score and are dropped; and tokens between,
which are merged into the most similar centre, or dropped with the *zero class* where none is similar enough.

No code of the authors is known. What the paper leaves open is a field here: how the two scores are combined, what is
averaged, and whether a merged entry may weigh as much as its tokens did (`correct_mass`, not in the paper).
Not here: the paper's padding of heads to a common length by shared entries; a label per token does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.keep.contract import Step
from mintage.keep.core.attention import attention_weights, weights_by_column
from mintage.keep.core.evict import Evictor, padding
from mintage.keep.core.storage import KeptLayer

__all__ = ["EMS", "MergedKV", "combine_scores", "evict_then_merge", "global_local_score"]

IRRELEVANT, MERGED, CENTRE = 0, 1, 2

_BLOCK = 512  # members compared at once: a matrix of similarities, entries by centres, is never whole


def combine_scores(
    glo: Float[Tensor, "batch groups older"], loc: Float[Tensor, "batch groups older"], combine: str = "max"
) -> Float[Tensor, "batch groups older"]:
    """Bring the global score to the local one's mean, and take the larger, or the sum, of the two."""
    aligned = glo * (loc.mean(-1, keepdim=True) / glo.mean(-1, keepdim=True).clamp_min(1e-30))
    return torch.maximum(aligned, loc) if combine == "max" else aligned + loc


def global_local_score(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch groups tokens dim"],
    window: int,
    *,
    scaling: float | None = None,
    combine: Literal["max", "sum"] = "max",
) -> tuple[
    Float[Tensor, "batch groups tokens"],
    Float[Tensor, "batch groups tokens"],
    Float[Tensor, "batch groups older"],
]:
    """Score a text by its own causal attention, averaged over the query heads of each group.

    Returns
    -------
    glo
        Attention received from all queries.
    loc
        Attention received from the last `window` queries.
    combined
        The score of the tokens before the window (`combine_scores`).
    """
    scale: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    tokens = torch.arange(query.shape[2], device=query.device)

    def causal(start: int, stop: int) -> Tensor:
        return (tokens[start:stop, None] >= tokens)[None, None]

    glo = weights_by_column(query, key, scaling=scale, visible=causal)
    first = max(query.shape[2] - window, 0)
    last = attention_weights(query[:, :, first:], key, scaling=scale, visible=causal(first, query.shape[2]))
    loc = last.sum(3).mean(2)
    return glo, loc, combine_scores(glo[:, :, :first], loc[:, :, :first], combine)


@dataclass(frozen=True, eq=False)
class MergedKV:
    """What `evict_then_merge` leaves.

    Parameters
    ----------
    key, value
        Merged centres in the order of their positions, then the window: [B, G, budget, d].
    member_count
        Tokens that each centre stands for, itself included: [B, G, centres].
    centre_index
        Which older entries the centres are: [B, G, centres], ascending.
    category
        0 irrelevant, 1 to be merged, 2 centre: [B, G, older].
    assignment
        Slot of each older entry: its centre's, `centres` for the zero class, -1 for irrelevant: [B, G, older].
    """

    key: Float[Tensor, "batch groups budget dim"]
    value: Float[Tensor, "batch groups budget dim"]
    member_count: Float[Tensor, "batch groups centres"]
    centre_index: Int[Tensor, "batch groups centres"]
    category: Int[Tensor, "batch groups older"]
    assignment: Int[Tensor, "batch groups older"]


def evict_then_merge(
    key: Float[Tensor, "batch groups entries dim"],
    value: Float[Tensor, "batch groups entries dim"],
    score: Float[Tensor, "batch groups older"],
    *,
    window: int,
    budget: int,
    irrelevant_mass: float | int = 0.05,
    tau: float | int = 0.5,
    weights: Literal["mean", "score"] = "mean",
    merge: Literal["both", "values"] = "both",
    count: Float[Tensor, "batch groups older"] | None = None,
    dead: Tensor | None = None,
) -> MergedKV:
    """Reduce older entries to ``budget - window`` centres per head; the newest `window` entries stay as they are.

    Parameters
    ----------
    key, value
        All entries, the window last.
    score
        Importance of the entries before the window, >= 0.
    irrelevant_mass
        Share of the total score that the entries dropped at once may carry together (inclusive).
    tau
        Least similarity cos(K, K') cos(V, V') for a merge; 0 where either cosine is not positive.
    weights
        Members count alike, or by their score.
    merge
        Whether keys are averaged as well as values.
    count
        Tokens that an entry stands for already; it weighs as many.
    dead
        Boolean, like `score`: entries (padding) that are dropped before everything.

    Raises
    ------
    UserError
        The budget leaves no entry besides the window, or is more than there is.
    """
    older = score.shape[-1]
    centres = budget - window
    if not 0 < centres <= older:
        raise UserError(f"budget={budget} leaves {centres} centres of {older} older entries; pass {window + 1} or more")
    key_old, value_old = key[:, :, :older], value[:, :, :older]
    if dead is not None:
        score = score.masked_fill(dead, 0)
    ranked = score if dead is None else score.masked_fill(dead, -1)

    # 1. classes
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    centre_index = order[..., :centres].sort(-1).values
    ascending = order[..., centres:].flip(-1)
    share = score.gather(-1, ascending).double().cumsum(-1) / score.double().sum(-1, keepdim=True).clamp_min(1e-300)
    category = torch.full_like(order, CENTRE)
    category.scatter_(-1, ascending, torch.where(share <= irrelevant_mass, IRRELEVANT, MERGED))

    # 2. the most similar centre, or the zero class
    first = int((share <= irrelevant_mass).sum(-1).min())  # before it all heads drop what they have
    members = ascending[..., first:]
    gone = None if dead is None else dead.expand_as(score).gather(-1, centre_index)
    nearest = _nearest(key_old, value_old, members, centre_index, tau, gone)
    slot = torch.full_like(order, -1).scatter_(-1, members, nearest)
    slot = torch.where(category == IRRELEVANT, -1, slot)
    own = torch.arange(centres, device=key.device).expand_as(centre_index)
    assignment = slot.scatter(-1, centre_index, own)

    # 3. one scatter over the centres and a slot for all that is dropped
    number = torch.ones_like(score) if count is None else count.to(score.dtype)
    weight = number if weights == "mean" else number * score
    if weights == "score":  # a centre without any score still stands for itself
        weight = weight.scatter(-1, centre_index, weight.gather(-1, centre_index).clamp_min(1e-12))
    target = torch.where(assignment < 0, centres, assignment)

    def total(values: Tensor) -> Tensor:
        summed = values.new_zeros(*values.shape[:2], centres + 1, *values.shape[3:])
        index = target if values.ndim == 3 else target[..., None].expand_as(values)
        return summed.scatter_add(2, index, values)[:, :, :centres]

    def mean(states: Tensor) -> Tensor:
        wide = states.to(weight.dtype) * weight[..., None]
        return (total(wide) / total(weight)[..., None]).to(states.dtype)

    merged_key = mean(key_old) if merge == "both" else _rows(key_old, centre_index)
    return MergedKV(
        key=torch.cat((merged_key, key[:, :, older:]), 2),
        value=torch.cat((mean(value_old), value[:, :, older:]), 2),
        member_count=total(number),
        centre_index=centre_index,
        category=category,
        assignment=assignment,
    )


def _nearest(
    key: Float[Tensor, "batch groups entries dim"],
    value: Float[Tensor, "batch groups entries dim"],
    members: Int[Tensor, "batch groups members"],
    centres: Int[Tensor, "batch groups centres"],
    tau: float | int,
    gone: Bool[Tensor, "batch groups centres"] | None,
) -> Int[Tensor, "batch groups members"]:
    """Return the most similar centre of each member; the number of centres where none is as similar as `tau`."""

    def unit(states: Tensor, index: Tensor) -> Tensor:
        rows = _rows(states, index)
        return functional.normalize(rows.float() if rows.dtype.itemsize < 4 else rows, dim=-1)

    number = centres.shape[-1]
    held = [(unit(states, members), unit(states, centres).transpose(-1, -2)) for states in (key, value)]
    found = torch.empty_like(members)
    for start in range(0, members.shape[-1], _BLOCK):
        rows = slice(start, start + _BLOCK)
        similar, of_value = (mine[:, :, rows] @ theirs for mine, theirs in held)
        similar.clamp_min_(0).mul_(of_value.clamp_min_(0))
        if gone is not None:
            similar.masked_fill_(gone[:, :, None], -1)
        best = similar.max(-1)
        found[..., rows] = torch.where(best.values >= tau, best.indices, number)
    return found


def _rows(states: Tensor, index: Tensor) -> Tensor:
    return states.gather(2, index[..., None].expand(*index.shape, states.shape[-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class EMS(Evictor):
    """Evict-then-merge with global-local scores (Li et al. 2024).

    In decoding, each query's attention is added to both scores of every entry, a merged entry has the scores of all its
    tokens, and entries are merged again when the budget is full.

    Parameters
    ----------
    irrelevant_mass
        Share of the score that the tokens dropped at once carry together; not given by the paper.
    tau
        Least similarity to be merged; above 1 nothing is, and the method evicts by its score.
    combine
        Of global and local score: the larger, or their sum.
    weights
        A merged entry is the mean of its tokens, or weighted by score.
    merge
        Average keys and values, or values alone: keys of distant positions turn against each other.
    correct_mass
        Add the logarithm of an entry's number of tokens to its attention score.
    budget, window, every
        As of `mintage.keep.core.evict.Evictor`.
    """

    irrelevant_mass: float | int = 0.05
    tau: float | int = 0.5
    combine: Literal["max", "sum"] = "max"
    weights: Literal["mean", "score"] = "mean"
    merge: Literal["both", "values"] = "both"
    correct_mass: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.irrelevant_mass < 1:
            raise UserError(f"irrelevant_mass={self.irrelevant_mass} is outside [0, 1); pass e.g. 0.05")
        if not self.tau == self.tau:
            raise UserError("tau is not a number; pass a similarity, e.g. 0.5")

    def take(self, layer: KeptLayer, key: Tensor, value: Tensor) -> None:
        """Append new tokens: no score yet, one token each."""
        zeros = key.new_zeros(key.shape[:3], dtype=torch.float32)
        fields = {"glo": zeros, "loc": zeros, "count": zeros + 1}
        layer.append(key=key, value=value, **fields)

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Add the attention of all queries to the global score, and of the last `window` to the local one."""
        bias = self.bias(layer)
        layer["glo"].add_(
            weights_by_column(
                step.query,
                layer["key"],
                scaling=step.scaling,
                visible=lambda a, b: step.visible(layer, a, b),
                bias=bias,
            )
        )
        first = max(step.queries - self.window, 0)
        last = attention_weights(
            step.query[:, :, first:], layer["key"], scaling=step.scaling, visible=step.visible(layer, first), bias=bias
        )
        received = last.sum(3).mean(2)
        if step.queries == 1:
            layer["loc"].add_(received)
        else:
            layer["loc"].copy_(received)

    def bias(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"] | None:
        """Let an entry weigh as much as its tokens."""
        return layer["count"].log() if self.correct_mass else None

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Return the combined score of all entries, the window's included."""
        return combine_scores(layer["glo"], layer["loc"], self.combine)

    def shrink(self, layer: KeptLayer, target: int) -> None:
        """Evict and merge down to `target` entries."""
        older = layer.entries - self.window
        newest = torch.arange(older, layer.entries, device=layer["key"].device)
        newest = newest.expand(*layer["key"].shape[:2], self.window)
        if target <= self.window:
            layer.keep(newest)
            return
        pads = padding(layer)
        glo, loc = layer["glo"][:, :, :older], layer["loc"][:, :, :older]
        merged = evict_then_merge(
            layer["key"],
            layer["value"],
            combine_scores(glo, loc, self.combine),
            window=self.window,
            budget=target,
            irrelevant_mass=self.irrelevant_mass,
            tau=self.tau,
            weights=self.weights,
            merge=self.merge,
            count=layer["count"][:, :, :older],
            dead=None if pads is None else pads.expand(*glo.shape[:2], -1)[:, :, :older],
        )
        centres = target - self.window
        slot = torch.where(merged.assignment < 0, centres, merged.assignment)
        sums = {
            name: score.new_zeros(*score.shape[:2], centres + 1).scatter_add(2, slot, score)[:, :, :centres]
            for name, score in (("glo", glo), ("loc", loc))
        }
        layer.keep(torch.cat((merged.centre_index, newest), 2))
        layer["key"].copy_(merged.key)
        layer["value"].copy_(merged.value)
        layer["count"][:, :, :centres] = merged.member_count
        for name, values in sums.items():
            layer[name][:, :, :centres] = values

    @classmethod
    def tiny(cls) -> EMS:
        """Make one for the laws."""
        return cls(budget=12, window=4, every=2)
