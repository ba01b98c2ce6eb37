"""DySpec: grow the draft tree, at run time, where the draft model's own probability says a token will be accepted.

Xiong et al., "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure", World Wide Web journal 28:36,
2025, arXiv 2410.11744. A token X drawn from the residual draft distribution R of its node is accepted, once it is
tried, with probability about R[X]. Hence a node is worth the chance that its whole path is accepted, and a *slot*
("draw one more child here") the chance that it is ever tried::

    value(child)        = value(slot) * R[X]
    first slot of node  = value(node)
    next sibling's slot = value(slot) * (1 - R[X])

Two builders fill slots: the most valuable one first (`grow_best_first`), or layer by layer all above a threshold
(`grow_threshold`). Whether a slot is filled depends on earlier draws only, never on the token about to be drawn, so
recursive rejection keeps the target's distribution. (Dropping nodes by the value of their *drawn* token would not.)

Deviations: the best-first builder asks the draft model about several open nodes in one forward, which changes no draw;
`max_depth` is ours. Not here: the verifier (`core.verify`), a block-sparse attention kernel (`block_order`
only arranges the nodes for one), the choice of the tree size by latency;
whether acceptance is what is predicted (`mintage.draft.core.calibration`). Longer than 200 lines: the two builders and
the drafter are read together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mintage.draft.contract import Context, Scorer
from mintage.draft.core.model_drafter import DraftSession, ModelDrafter, tiny_draft_model
from mintage.draft.core.tree import TokenTree, Topology, depth_first
from mintage.draft.core.verify import RecursiveRejection, Verifier
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.options import option

__all__ = ["DySpec", "SlotGrowth", "grow_best_first", "grow_threshold"]

_NO_MASS = 1e-12  # no slot opens for a smaller share of the draft distribution

NextDistributions = Callable[[Sequence[int], Sequence[int], Sequence[int]], Tensor]
"""``(nodes, tokens, parents) -> (nodes, vocabulary)``: the draft distributions after these nodes of the tree in growth.

Called first with the root (node 0, parent -1) alone; afterwards every parent was asked about before.
"""


class SlotGrowth:
    """A tree in growth; nodes are numbered as drawn, the root is 0.

    Parameters
    ----------
    root
        The last committed token.

    Attributes
    ----------
    tokens, parent, depth, value
        One entry per node.
    slot_value
        Value of the slot that each node but the root fills.
    distributions
        Draft distribution of every node that was asked about, as the draft model gave it.
    children
        Children of those nodes, in drawing order.
    """

    def __init__(self, root: int) -> None:
        self.tokens, self.parent, self.depth, self.value = [root], [-1], [0], [1.0]
        self.slot_value: list[float] = []
        self.distributions: dict[int, Float[Tensor, " vocabulary"]] = {}
        self.children: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def ask(self, nodes: Sequence[int], next_distributions: NextDistributions) -> None:
        """Get the draft distributions after `nodes`, all at once."""
        distributions = next_distributions(nodes, [self.tokens[n] for n in nodes], [self.parent[n] for n in nodes])
        for node, probs in zip(nodes, distributions, strict=True):
            self.distributions[node], self.children[node] = probs, []

    def draw(self, node: int, slot: float, uniform: float) -> float:
        """Draw the next child of `node` without replacement, by inverse CDF in float64.

        Returns
        -------
        float
            Value of the next sibling's slot; 0 if nothing is left to draw.
        """
        residual = self.distributions[node].to(torch.float64, copy=True)
        if drawn := [self.tokens[child] for child in self.children[node]]:
            residual[drawn] = 0
        mass = residual.cumsum(-1)
        at = torch.searchsorted(mass, torch.stack([uniform * mass[-1]]), right=True)
        at = torch.minimum(at, torch.searchsorted(mass, mass[-1:]))  # rounding must not run past the last token
        token, share = int(at), min(float(residual[at] / mass[-1]), 1.0)
        self.children[node].append(len(self))
        self.tokens.append(token)
        self.parent.append(node)
        self.depth.append(self.depth[node] + 1)
        self.value.append(slot * share)
        self.slot_value.append(slot)
        return slot * (1 - share) if 1 - share > _NO_MASS else 0.0

    def tree(self) -> TokenTree:
        """Return the draft tree in drawing order; values become the nodes' confidence, float64."""
        asked = [node for node, below in self.children.items() if below]
        row = {node: i for i, node in enumerate(asked)}
        distributions = torch.stack([self.distributions[node] for node in asked])
        return TokenTree(
            tokens=torch.tensor(self.tokens, device=distributions.device),
            topology=Topology(self.parent),
            confidence=torch.tensor(self.value, dtype=torch.float64, device=distributions.device),
            distributions=distributions,
            distribution_of=tuple(row.get(node, -1) for node in range(len(self))),
        )


def grow_best_first(
    next_distributions: NextDistributions,
    root: int,
    budget: int,
    uniforms: Iterator[float],
    *,
    max_depth: int | None = None,
) -> SlotGrowth:
    """Fill the `budget` most valuable slots, best first; ties go to the slot that opened first.

    Values of open slots sum to at most 1 and there are never more than `budget` of them, so with unlimited depth no
    slot below ``1 / budget`` is ever filled. Whenever a distribution is missing, all open nodes above that bound are
    asked about in the same forward. That is at most one row per drawn node, and no draw depends on it.

    Parameters
    ----------
    next_distributions
        The draft model.
    root
        The last committed token.
    budget
        Nodes to draw, the root not counted.
    uniforms
        Numbers in [0, 1), one per draw.
    max_depth
        Nodes at this depth get no children.
    """
    growth, opened = SlotGrowth(root), count()
    heap = [(-1.0, next(opened), 0)]
    while heap and len(growth) <= budget:
        negative, _, node = heappop(heap)
        slot = -negative
        if node not in growth.distributions:
            floor = min(slot, 1 / budget)
            rivals = sorted(entry for entry in heap if -entry[0] >= floor and entry[2] not in growth.distributions)
            growth.ask([node, *(n for _, _, n in rivals[: budget - len(growth)])], next_distributions)
        following = growth.draw(node, slot, next(uniforms))
        child = len(growth) - 1
        if growth.value[child] > 0 and (max_depth is None or growth.depth[child] < max_depth):
            heappush(heap, (-growth.value[child], next(opened), child))
        if following > 0:
            heappush(heap, (-following, next(opened), node))
    return growth


def grow_threshold(
    next_distributions: NextDistributions,
    root: int,
    threshold: float,
    uniforms: Iterator[float],
    *,
    max_depth: int,
    max_nodes: int,
) -> SlotGrowth:
    """Fill all slots worth more than `threshold`, layer by layer, with one draft forward per layer.

    Parameters
    ----------
    next_distributions
        The draft model.
    root
        The last committed token.
    threshold
        In (0, 1); ``1 / m`` gives a tree of order m.
    uniforms
        Numbers in [0, 1), one per draw.
    max_depth
        Layers to draw.
    max_nodes
        Stop after this many nodes, the root not counted.
    """
    growth, layer = SlotGrowth(root), [0]
    for _ in range(max_depth):
        room = max_nodes + 1 - len(growth)
        layer = [node for node in layer if growth.value[node] > threshold][:room]  # each gets one child at least
        if not layer:
            break
        growth.ask(layer, next_distributions)
        first = len(growth)
        for node in layer:
            slot = growth.value[node]
            while slot > threshold and len(growth) <= max_nodes:
                slot = growth.draw(node, slot, next(uniforms))
        layer = list(range(first, len(growth)))
    return growth


class _Draft:
    """The draft model's side of one request; a growing tree asks it for distributions."""

    def __init__(self, session: DraftSession, warp: Warp, generator: torch.Generator | None) -> None:
        self.session, self.warp = session, warp
        self.uniforms = _uniforms(generator, session.draft.device)

    def __call__(self, nodes: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Return the distributions after these nodes, of shape (nodes, vocabulary), warped as they are sampled."""
        if nodes[0] == 0:
            logits = self.session.begin_round()[None]
        else:
            logits = self.session.extend(nodes, torch.tensor(tokens, device=self.session.draft.device), parents)
        distributions = self.warp.probabilities(logits)
        if distributions.isnan().any():
            raise UserError("the draft model returned NaN logits; check its weights, or load it in float32")
        return distributions


def _uniforms(generator: torch.Generator | None, device: torch.device) -> Iterator[float]:
    while True:
        yield from torch.rand(64, dtype=torch.float64, device=device, generator=generator).tolist()


@dataclass(frozen=True, kw_only=True, eq=False)
class DySpec(ModelDrafter):
    """Drafter that grows a tree from a draft model under a node budget.

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary.
    budget
        Most nodes to draft. The paper's values are 64, and 768 where the target's weights are offloaded.
    threshold
        None: best first. A number in (0, 1): layer by layer, all slots worth more than it, at most `budget` nodes;
        fewer draft forwards. About ``1 / budget`` suits.
    max_depth
        Deepest node. A confident draft model would else spend the whole budget on one chain.
    draft_temperature
        Temperature of the draft distribution when the target is decoded greedily; one of a single token would give no
        width.
    block_order
        Depth-first node order. It pays with a block-sparse attention kernel; sdpa and eager read the mask densely.

    Examples
    --------
    >>> drafter = DySpec(draft_model=small, budget=32)  # doctest: +SKIP
    >>> generate(model, ids, drafter, temperature=0.6).stats.tokens_per_forward  # doctest: +SKIP
    """

    verifier: ClassVar[Verifier] = RecursiveRejection()

    budget: int = option(64, "Most nodes to draft.", least=1)
    threshold: float | None = option(None, "Draw layer by layer all slots worth more.", above=0, below=1)
    max_depth: int = option(12, "Deepest node.", least=1)
    draft_temperature: float = option(0.6, "Of the draft model when the target is decoded greedily.", above=0)
    block_order: bool = option(False, "Depth-first node order.")

    def begin(self, target: Scorer, context: Context) -> None:
        """Open a session with the draft model."""
        greedy, generator = context.warp.greedy, context.generator
        if greedy:  # the output is fixed, so the draws are made reproducible too
            generator = torch.Generator(target.device).manual_seed(0)
        warp = Warp(temperature=self.draft_temperature) if greedy else context.warp
        super().begin(target, context)
        context.memory[self] = _Draft(context.memory[self], warp, generator)

    def session(self, context: Context) -> DraftSession:
        """Return the draft model's side of a request that has begun."""
        return context.memory[self].session

    @torch.no_grad()
    def propose(self, context: Context) -> TokenTree:
        """Grow a tree no deeper than can still be used."""
        draft: _Draft = context.memory[self]
        root, depth = int(context.root), min(self.max_depth, context.room)
        if self.threshold is None:
            growth = grow_best_first(draft, root, self.budget, draft.uniforms, max_depth=depth)
        else:
            growth = grow_threshold(draft, root, self.threshold, draft.uniforms, max_depth=depth, max_nodes=self.budget)
        tree = growth.tree()
        return depth_first(tree) if self.block_order else tree

    @classmethod
    def tiny(cls) -> DySpec:
        """Make an instance for the laws."""
        return cls(draft_model=tiny_draft_model(), budget=3, max_depth=2)
