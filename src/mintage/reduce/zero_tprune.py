"""Zero-TPrune: drop tokens by a PageRank over the attention graph and by the likeness of their keys, without training.

Wang, Dedhia, Jha, "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
Transformers", CVPR 2024, arXiv 2305.17328. Behind chosen blocks the block's attention is read as a graph in which every
token votes for those it attends to. Three stages: *I'* ranks the tokens by one round of votes; *S* drops those of the
less important half that are most like one of the more important half; *I* counts the votes of those left, many rounds,
and keeps the most important.

No code of the authors is known. Inferred are: scores have mean 1 (at a sum of 1 no head could pass the filter's own
default), all heads count where none passes, rows of the attention sum to 1 again without the dropped tokens, the S
stage compares keys with their heads side by side, and the number kept is rounded up. The default layers, ratios and
numbers are those known for DeiT-S, second hand.

Not here: the paper's search for ratios, and its other ways to split and to compare in the S stage; stopping on
convergence (an image's result would depend on its batch); a remedy for registers and attention sinks, which collect
votes and so are ranked first.

The file is long because its three stages are one algorithm, with the paper's ablations of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.prunings import Pruning, patches_left, prunings
from mintage.reduce.core.schedule import check_share, nearest_strength
from mintage.reduce.core.votes import among, combine_heads, weighted_page_rank

__all__ = ["ZeroTPrune", "combine_heads", "most_similar", "similarity_prune", "weighted_page_rank"]

_STRONGEST = 64.0  # times stronger than the settings say


def most_similar(
    importance: Float[Tensor, "batch patches"], keys: Float[Tensor, "batch patches dim"]
) -> tuple[Int[Tensor, "batch lesser"], Float[Tensor, "batch lesser"], Int[Tensor, "batch lesser"]]:
    """Compare the less important half of the patches with the more important one (the S stage's sequential split).

    Returns
    -------
    lesser
        The less important ``patches // 2``, by falling importance.
    similarity
        Of each, the greatest cosine to one of the others.
    match
        Which one that is.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)
    first = order.shape[1] - order.shape[1] // 2
    greater, lesser = order[:, :first], order[:, first:]
    unit = functional.normalize(keys, dim=-1)
    best = (_rows(unit, lesser) @ _rows(unit, greater).transpose(1, 2)).max(-1)
    return lesser, best.values, greater.gather(1, best.indices)


def similarity_prune(
    importance: Float[Tensor, "batch patches"], keys: Float[Tensor, "batch patches dim"], r: int
) -> Int[Tensor, "batch kept"]:
    """Drop the `r` patches of the less important half that are most like one of the others (section 3.3).

    Returns
    -------
    Tensor
        The patches that stay, ascending.

    Raises
    ------
    UserError
        `r` is more than half of the patches.
    """
    patches = importance.shape[1]
    if not 0 <= r <= patches // 2:
        raise UserError(f"r={r} of {patches} patches; the S stage drops {patches // 2} at most")
    lesser, similarity, _ = most_similar(importance, keys)
    dropped = lesser.gather(1, similarity.argsort(dim=1, descending=True, stable=True)[:, :r])
    mark = torch.zeros_like(importance).scatter_(1, dropped, 1)
    return mark.argsort(dim=1, stable=True)[:, : patches - r]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroTPrune(Reducer):
    """Zero-shot token pruning (Wang, Dedhia, Jha 2024).

    Defaults are those known for DeiT-S: prunings behind blocks 1, 3, 6, 9 and 11 of 12 (the nearest of other depths)
    that keep 1, 0.9, 0.8, 0.7 and 1; the S stages drop 10 of an image's 196 patches (in proportion of others); 30
    rounds of votes in the first quarter of the blocks, 1 in the last, 5 between.

    Raises
    ------
    UserError
        Numbers out of range or not one per layer. On attaching: a layer that does not exist.
    """

    layers: tuple[int, ...] | None = option(None, "Blocks, from 0, that are followed by a pruning.")
    retention: tuple[float | int, ...] | None = option(
        None, "Share of the patches that each I stage keeps; one serves all layers.", above=0, most=1
    )
    similar: tuple[int, ...] | None = option(
        None, "Patches that each S stage drops, half of those there at most.", least=0
    )
    iterations: tuple[int, ...] | None = option(None, "Rounds of votes of each I stage.", least=1)
    v_min: float | int = option(0.01, "Heads count whose scores vary by this at least.", least=0)
    v_max: float | int = option(0.7, "Heads count whose scores vary by this at most; inf filters none.", least=0)
    heads: Literal["square", "plain"] = option("square", "Mean over heads; plain is an ablation.")
    order: Literal["ISI", "IS", "I"] = option(
        "ISI", "Stages: the paper's; importance before likeness; importance alone. As many stay in each layer."
    )
    class_boost: bool = option(True, "Let the class token start with more votes; false is the paper's variant uni.")
    hook: Literal["block", "attention"] = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        "block", "Prune behind the block, or before its MLP, which costs less."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            said = "x".join(map(str, self.layers))
            if not self.layers or min(self.layers) < 0 or sorted(set(self.layers)) != list(self.layers):
                raise UserError(f"layers={said}: pass numbers of blocks from 0, ascending, e.g. 1x3x6")
            if self.retention is None:
                raise UserError(f"layers={said} needs retention, the share kept in each of them, e.g. 0.8")
        if self.v_min > self.v_max:
            raise UserError(f"v_min={self.v_min:g} and v_max={self.v_max:g}: pass 0 <= v_min <= v_max")

    def settings(self, layers: int, patches: int) -> dict[int, Pruning]:
        """Return the prunings of a model, by block, see `mintage.reduce.core.prunings`."""
        own = {name: getattr(self, name) for name in ("retention", "similar", "iterations")}
        return prunings(layers, patches, at=self.layers, **own)

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return the number of patches behind the S and the I stage of every block."""
        return patches_left(self.settings(anatomy.layers, anatomy.patches), anatomy.layers, anatomy.patches)

    def wants_attention(self, layer: int) -> bool:
        """Always: it is the graph."""
        return True

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Run the stages of one pruning; what stays keeps its value and its order."""
        _, similar, iterations = self.settings(state.layers, state.input_patches)[state.layer]
        most = keep if self.order == "IS" else state.patches // 2  # half of what is compared
        similar = min(similar, most, state.patches - keep)
        with torch.no_grad(), torch.autocast(state.x.device.type, enabled=False):
            keys = evidence.key.transpose(1, 2).flatten(2).detach()
            index = self.choose(
                evidence.attention().detach(), keys, keep, similar=similar, iterations=iterations, prefix=state.prefix
            )
        return state.keep(index)

    def choose(
        self,
        attention: Float[Tensor, "batch heads tokens tokens"],
        keys: Float[Tensor, "batch tokens dim"],
        keep: int,
        *,
        similar: int,
        iterations: int,
        prefix: int,
    ) -> Int[Tensor, "batch kept"]:
        """Return the patches that stay, ascending (0 is the first patch).

        Parameters
        ----------
        attention, keys
            Of one block, keys with their heads side by side; half precision is lifted to float32.
        keep
            How many stay.
        similar
            How many of the others the S stage drops, half of the patches at most.
        iterations
            Rounds of votes of the I stage.
        prefix
            Tokens before the patches: they vote, and always stay.

        Raises
        ------
        UserError
            `similar` is more than half of the patches (in order IS: of what importance leaves), or more than go.
        """
        attention, keys = (x.float() if x.dtype.itemsize < 4 else x for x in (attention, keys))
        batch, patches = keys.shape[0], keys.shape[1] - prefix
        everything = torch.arange(patches, device=keys.device).expand(batch, -1)
        most = min(keep if self.order == "IS" else patches // 2, patches - keep)
        if not 0 < keep <= patches or (not 0 <= similar <= most and self.order != "I"):
            asked = f"similar={similar} and keep={keep} of {patches} patches"
            raise UserError(f"{asked}: keep 1 to {patches}, similar 0 to {max(most, 0)}")
        if self.order == "I" or similar == 0:
            return self._important(attention, everything, keep, iterations, prefix)
        if self.order == "IS":
            left = self._important(attention, everything, keep + similar, iterations, prefix)
            importance = self._importance(attention, iterations, prefix).gather(1, left)
            stays = similarity_prune(importance, _rows(keys, left + prefix), similar)
            return left.gather(1, stays)
        left = similarity_prune(self._importance(attention, 1, prefix), keys[:, prefix:], similar)
        return self._important(attention, left, keep, iterations, prefix)

    def _important(
        self, attention: Tensor, left: Int[Tensor, "batch left"], keep: int, iterations: int, prefix: int
    ) -> Int[Tensor, "batch kept"]:
        """The I stage among the patches `left`; ascending, as they are."""
        if keep == left.shape[1]:
            return left
        if left.shape[1] + prefix < attention.shape[-1]:
            first = torch.arange(prefix, device=left.device).expand(left.shape[0], -1)
            attention = among(attention, torch.cat([first, left + prefix], 1))
        importance = self._importance(attention, iterations, prefix)
        best = importance.argsort(dim=1, descending=True, stable=True)[:, :keep]
        return left.gather(1, best.sort(dim=1).values)

    def _importance(self, attention: Tensor, iterations: int, prefix: int) -> Float[Tensor, "batch patches"]:
        scores = weighted_page_rank(attention, iterations, class_boost=self.class_boost and prefix > 0)
        return combine_heads(scores, self.v_min, self.v_max, mean=self.heads)[:, prefix:]

    def at(self, share: float, anatomy: Anatomy) -> ZeroTPrune:
        """Return this method at about `share` of the multiply-adds, by one factor for all ratios.

        Where more than the method's own numbers leave may stay, ratios are brought nearer to 1 by a common power, and
        the S stages drop fewer. Where less may stay, all ratios, also those of 1, are divided by a common number: of
        the two ways it is the one that lost less on images held out of a training (a power cuts the later layers to
        nothing). What the prunings themselves compute is not counted.

        Raises
        ------
        UserError
            `share` is outside (0, 1], or less than the method can reach in its layers.
        """
        check_share(share)

        def at_strength(strength: float) -> ZeroTPrune:
            planned = self.settings(anatomy.layers, anatomy.patches)
            retention, similar, iterations = zip(*planned.values(), strict=True)
            return replace(
                self,
                layers=tuple(planned),
                retention=tuple(r / strength if strength > 1 else r**strength for r in retention),
                similar=tuple(math.floor(s * min(strength, 1.0) + 0.5) for s in similar),
                iterations=iterations,
            )

        def left(strength: float) -> float:
            return anatomy.macs(at_strength(strength).kept(anatomy), hook=self.hook) / anatomy.full

        best = nearest_strength(left, share, 0.0, _STRONGEST)
        if left(best) > share + 0.05:
            blocks = "x".join(map(str, self.settings(anatomy.layers, anatomy.patches)))
            raise UserError(f"macs={share:g} cannot be reached in layers {blocks}; the least is macs={left(best):.2f}")
        return at_strength(best)

    def unreduced(self) -> ZeroTPrune:
        """Return this method with everything kept."""
        return replace(self, retention=(1.0,), similar=(0,))

    @classmethod
    def tiny(cls) -> ZeroTPrune:
        """Return one that prunes behind two of the four blocks."""
        return cls(layers=(0, 2), retention=(0.8,), similar=(2,), iterations=(5,))
