"""Reduce entries to the most important ones and merge what is like them into them (EMS, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import check_literals

__all__ = ["MergedKV", "evict_then_merge"]

IRRELEVANT, MERGED, CENTRE = 0, 1, 2

_BLOCK = 512  # members compared at once: a matrix of similarities, entries by centres, is never whole


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


@check_literals
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
        The budget leaves no entry besides the window.
    """
    older = score.shape[-1]
    if budget < older + window and budget <= window:
        raise UserError(
            f"budget={budget} leaves {budget - window} centres of {older} older entries; pass {window + 1} or more"
        )
    centres = min(budget - window, older)  # with room for all, every entry is a centre and stays as it is
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
