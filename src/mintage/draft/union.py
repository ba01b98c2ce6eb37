"""Several drafters under one node budget: their trees are merged, shared prefixes once, the most confident nodes kept.

A recycled table knows which tokens tend to follow each other, a look-up knows that this text repeats itself; together
they draft better than either. Verified by matching only, so every draft is lossless whatever distribution it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mintage import catalog
from mintage.draft.contract import Context, Drafter, Scorer
from mintage.draft.core.latency import LatencyCurve, latency_curve
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.options import option

__all__ = ["Union"]


@dataclass
class _Memory:
    """Of one request: the latency curve if the budget is automatic, and how the last union was made."""

    curve: LatencyCurve | None
    tree: TokenTree | None = None
    parts: list[tuple[TokenTree, list[int]]] = field(default_factory=list)
    """Each drafter's tree, and the union's node for each of its nodes (-1: not kept)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Union(Drafter):
    """Merges the trees of `drafters`.

    Parameters
    ----------
    drafters
        At least one; every one must state its nodes' confidence.
    budget
        Nodes to keep, or ``"auto"``: in every round the number that maximises expected tokens per second, from the
        nodes' confidence and the target's measured latency curve.
    """

    drafters: tuple[Drafter, ...]
    budget: int | Literal["auto"] = option("auto", "Nodes that they share.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.drafters:
            raise UserError("a union needs at least one drafter, e.g. token-recycling+prompt-lookup")

    @property
    def reads_prompt(self) -> bool:
        """Whether any of the drafters reads the prompt's logits."""
        return any(drafter.reads_prompt for drafter in self.drafters)

    def check(self, target: Scorer) -> None:
        """Refuse a target that any of the drafters refuses."""
        for drafter in self.drafters:
            drafter.check(target)

    def begin(self, target: Scorer, context: Context) -> None:
        """Begin all drafters."""
        for drafter in self.drafters:
            drafter.begin(target, context)
        context.memory[self] = _Memory(latency_curve(target) if self.budget == "auto" else None)

    def propose(self, context: Context) -> TokenTree:
        """Merge equal paths, then keep the best nodes; two drafters that agree count as independent evidence."""
        memory: _Memory = context.memory[self]
        parents, tokens, doubts, depth = [-1], [int(context.root)], [0.0], [0]
        at: dict[tuple[int, int], int] = {}
        merged: list[tuple[TokenTree, list[int]]] = []
        for drafter in self.drafters:
            tree = drafter.propose(context)
            if tree.confidence is None:
                raise UserError(f"{type(drafter).__name__} does not state its nodes' confidence; it cannot be merged")
            place, doubted = [0], {0}
            confidence = tree.confidence.tolist()
            for node, token in enumerate(tree.tokens.tolist()[1:], start=1):
                key = place[tree.topology.parent[node]], token
                if key not in at:
                    at[key] = len(parents)
                    parents.append(key[0])
                    tokens.append(token)
                    doubts.append(1.0)
                    depth.append(depth[key[0]] + 1)
                here = at[key]
                if here not in doubted:  # siblings with equal tokens are one guess, not two
                    doubts[here] *= 1 - confidence[node]
                    doubted.add(here)
                place.append(here)
            merged.append((tree, place))
        belief = 1 - np.array(doubts)
        for node, above in enumerate(parents[1:], start=1):
            belief[node] = min(belief[node], belief[above])
        usable = np.array(depth) <= context.room
        kept = self._best(np.where(usable, belief, -1.0), int(usable.sum()) - 1, memory.curve)
        index = {old: new for new, old in enumerate(kept)}
        memory.parts = [(tree, [index.get(here, -1) for here in place]) for tree, place in merged]
        device = context.ids.device
        memory.tree = TokenTree(
            tokens=torch.tensor([tokens[n] for n in kept], device=device),
            topology=Topology([index[parents[n]] if n else -1 for n in kept]),
            confidence=torch.tensor(belief[kept], device=device, dtype=torch.float32),
        )
        return memory.tree

    def _best(self, belief: np.ndarray, usable: int, curve: LatencyCurve | None) -> list[int]:
        """Take the root and the most confident nodes; parents come first on ties, so the set is prefix-closed."""
        order = (np.argsort(-belief[1:], kind="stable") + 1)[:usable]
        size = self.budget if curve is None else curve.best_size(belief[order])
        return [0, *sorted(order[: int(size)].tolist())]

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Show every drafter the part of the union that it drafted; a tree from elsewhere (the prompt) as it is."""
        memory: _Memory = context.memory[self]
        if tree is not memory.tree:
            for drafter in self.drafters:
                drafter.observe(context, tree, logits, path)
            return
        accepted = set(path)
        for drafter, (own, place) in zip(self.drafters, memory.parts, strict=True):
            nodes = [node for node, here in enumerate(place) if here >= 0]
            part = own.keep(nodes) if len(nodes) < len(own) else own
            where = [place[node] for node in nodes]
            lived = [n for n, here in enumerate(where) if here in accepted]
            drafter.observe(context, part, logits[where], lived)

    @classmethod
    def from_spec(cls, spec: str, **given: Any) -> Drafter:
        """Make one drafter from ``"name:key=value"``, or a union from ``"one+two"``.

        A part that is a bare setting belongs to the union: ``"token-recycling+prompt-lookup+budget=24"``.
        """
        parts = [part.strip() for part in spec.split("+")]
        if len(parts) == 1:
            return catalog.build(spec, "draft", **given)
        own = [part for part in parts if "=" in part and ":" not in part]
        drafters = tuple(catalog.build(part, "draft", **given) for part in parts if part not in own)
        return catalog.build(f"union:{','.join(own)}", "draft", drafters=drafters)

    @classmethod
    def tiny(cls) -> Union:
        """Make an instance for the laws."""
        from mintage.draft import PromptLookup, TokenRecycling

        return cls(drafters=(TokenRecycling.tiny(), PromptLookup.tiny()), budget=12)
