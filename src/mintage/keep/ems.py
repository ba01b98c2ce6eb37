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
from jaxtyping import Float
from torch import Tensor

from mintage.keep.contract import Geometry, Step
from mintage.keep.core.attention import attention_weights, weights_by_column
from mintage.keep.core.evict import Evictor, padding
from mintage.keep.core.merge import MergedKV, evict_then_merge
from mintage.keep.core.storage import KeptLayer
from mintage.options import check_literals, option

__all__ = ["EMS", "MergedKV", "combine_scores", "evict_then_merge", "global_local_score"]


@check_literals
def combine_scores(
    glo: Float[Tensor, "batch groups older"],
    loc: Float[Tensor, "batch groups older"],
    combine: Literal["max", "sum"] = "max",
) -> Float[Tensor, "batch groups older"]:
    """Bring the global score to the local one's mean, and take the larger, or the sum, of the two."""
    aligned = glo * (loc.mean(-1, keepdim=True) / glo.mean(-1, keepdim=True).clamp_min(1e-30))
    return torch.maximum(aligned, loc) if combine == "max" else aligned + loc


@check_literals
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


@dataclass(frozen=True, kw_only=True, eq=False)
class EMS(Evictor):
    """Evict-then-merge with global-local scores (Li et al. 2024).

    In decoding, each query's attention is added to both scores of every entry, a merged entry has the scores of all its
    tokens, and entries are merged again when the budget is full.
    """

    irrelevant_mass: float | int = option(
        0.05, "Share of the score that tokens dropped at once carry together; not given by the paper.", least=0, below=1
    )
    tau: float | int = option(
        0.5, "Least similarity to be merged; above 1 nothing is, and the method evicts by its score.", least=-1
    )
    combine: Literal["max", "sum"] = option("max", "Of global and local score: the larger, or their sum.")
    weights: Literal["mean", "score"] = option("mean", "A merged entry is its tokens' mean, or weighted by score.")
    merge: Literal["both", "values"] = option(
        "both", "Average keys and values, or values alone: keys of distant positions turn against each other."
    )
    correct_mass: bool = option(False, "Add the logarithm of an entry's number of tokens to its attention score.")

    def check(self, geometry: Geometry) -> None:
        """Refuse models without keys in their cache, by whose likeness entries are merged."""
        super().check(geometry)
        geometry.need_keys("ems")

    def take(self, layer: KeptLayer, key: Tensor, value: Tensor) -> None:
        """Append new tokens: no score yet, one token each."""
        zeros = key.new_zeros(key.shape[:3], dtype=torch.float32)
        fields = {"glo": zeros, "loc": zeros, "count": zeros + 1}
        layer.append(key=key, value=value, **fields)

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Add the attention of all queries to the global score, and of the last `window` to the local one."""
        bias = self.bias(layer)
        layer["glo"].add_(step.received(layer, bias))
        last = step.weights(layer, max(step.queries - self.window, 0), bias)
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
        """Hold 12 entries, the newest 4 among them."""
        return cls(budget=12, window=4, every=2)
