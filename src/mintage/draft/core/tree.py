"""Draft trees: which node hangs under which, and what the nodes carry.

Node 0 is the *root*: the last committed token, which has no row in the target's cache yet. A parent's index is always
smaller than its children's, and siblings stand in the order in which they were drawn; verifiers rely on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["TokenTree", "Topology", "comb", "depth_first", "rectangle"]


class Topology:
    """The shape of a tree, kept apart from its tokens so that a fixed shape computes its masks once.

    Parameters
    ----------
    parent
        Parent of every node, -1 for node 0 (the root).

    Raises
    ------
    ValueError
        A node does not come after its parent, or there is not exactly one root.
    """

    def __init__(self, parent: Sequence[int]) -> None:
        self.parent = tuple(int(p) for p in parent)
        if not self.parent or self.parent[0] != -1:
            raise ValueError("a tree starts with its root: parent[0] must be -1")
        depth = [0]
        for node, above in enumerate(self.parent[1:], start=1):
            if not 0 <= above < node:
                raise ValueError(f"parent[{node}]={above}; a parent must come before its children and after -1")
            depth.append(depth[above] + 1)
        self.depth = tuple(depth)
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.parent)

    @classmethod
    def chain(cls, length: int) -> Topology:
        """Make a root followed by `length` nodes in single file."""
        return cls(range(-1, length))

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of every node, in drawing order."""
        below: list[list[int]] = [[] for _ in self.parent]
        for node, above in enumerate(self.parent[1:], start=1):
            below[above].append(node)
        return tuple(map(tuple, below))

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root down to `node`, both included."""
        nodes = [node]
        while nodes[-1]:
            nodes.append(self.parent[nodes[-1]])
        return nodes[::-1]

    def on(
        self, device: torch.device
    ) -> tuple[Int[Tensor, " nodes"], Int[Tensor, " nodes"], Bool[Tensor, "nodes nodes"]]:
        """Return parent, depth and the ancestors-or-self matrix (row: node, column: ancestor) on `device`."""
        if device not in self._on:
            count = len(self.parent)
            lineage = torch.eye(count, dtype=torch.bool)
            for node, above in enumerate(self.parent[1:], start=1):
                lineage[node] |= lineage[above]
            tensors = torch.tensor(self.parent), torch.tensor(self.depth), lineage
            self._on[device] = tuple(t.to(device) for t in tensors)  # type: ignore[assignment]
        return self._on[device]


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """A draft: candidate continuations of one sequence, to be scored by one target forward.

    Parameters
    ----------
    tokens
        Token of every node; node 0 is the root. -1 marks a *probe*: an extra input row with an embedding of its own
        (`embeddings`), which reads the path above it and is never accepted.
    topology
        Who hangs under whom.
    confidence
        Estimated probability that the whole path to a node is accepted; non-increasing downwards. Used to share one
        node budget between drafters, never for verification.
    distributions, distribution_of
        Draft distributions, and for every node the row of `distributions` its children were drawn from (-1: none kept).
        They must be exactly the distributions that were sampled.
    drafts
        For independently drawn sequences: their nodes, one tuple per sequence in drawing order. Equal prefixes share
        nodes, but every sequence stays a candidate of its own.
    embeddings
        Input embeddings of the probes, in node order.
    """

    tokens: Int[Tensor, " nodes"]
    topology: Topology
    confidence: Float[Tensor, " nodes"] | None = None
    distributions: Float[Tensor, "distributions vocabulary"] | None = None
    distribution_of: tuple[int, ...] | None = None
    drafts: tuple[tuple[int, ...], ...] | None = None
    embeddings: Float[Tensor, "probes width"] | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.topology):
            raise ValueError(f"{len(self.tokens)} tokens for {len(self.topology)} nodes")

    def __len__(self) -> int:
        return len(self.topology)

    @classmethod
    def root_only(cls, root: Tensor) -> TokenTree:
        """Make the tree that drafts nothing: the round then is a plain decoding step."""
        return cls(tokens=root.reshape(1), topology=Topology((-1,)), confidence=torch.ones(1, device=root.device))

    def distribution(self, node: int) -> Float[Tensor, " vocabulary"]:
        """Return the draft distribution that the children of `node` were drawn from."""
        if self.distributions is None or self.distribution_of is None or self.distribution_of[node] < 0:
            raise ValueError(f"the tree carries no draft distribution at node {node}; its drafter must keep one")
        return self.distributions[self.distribution_of[node]]

    def keep(self, nodes: Sequence[int]) -> TokenTree:
        """Return the sub-tree of `nodes` (ascending, prefix-closed, root included), order unchanged."""
        index = {old: new for new, old in enumerate(nodes)}
        picked = torch.tensor(list(nodes), device=self.tokens.device)
        embeddings = self.embeddings
        if embeddings is not None:
            probes = (self.tokens == -1).nonzero().squeeze(-1).tolist()
            rows = [row for row, node in enumerate(probes) if node in index]
            embeddings = embeddings[rows] if rows else None
        return replace(
            self,
            tokens=self.tokens[picked],
            topology=Topology([index[self.topology.parent[n]] if n else -1 for n in nodes]),
            confidence=None if self.confidence is None else self.confidence[picked],
            distribution_of=None if self.distribution_of is None else tuple(self.distribution_of[n] for n in nodes),
            drafts=None
            if self.drafts is None
            else tuple(tuple(index[n] for n in draft if n in index) for draft in self.drafts),
            embeddings=embeddings,
        )

    def cut(self, depth: int) -> TokenTree:
        """Drop what lies deeper than `depth`; a cut that looks at no token keeps every verifier exact."""
        if max(self.topology.depth) <= depth:
            return self
        return self.keep([node for node, d in enumerate(self.topology.depth) if d <= depth])


def depth_first(tree: TokenTree) -> TokenTree:
    """Put the nodes in depth-first order, so that the ancestor mask is made of dense blocks, as in the paper.

    Siblings keep their drawing order, so verification is unchanged.
    """
    order, pending = [], [0]
    while pending:
        order.append(node := pending.pop())
        pending += reversed(tree.topology.children[node])
    index = {old: new for new, old in enumerate(order)}
    return replace(
        tree,
        tokens=tree.tokens[order],
        topology=Topology([index[tree.topology.parent[old]] if old else -1 for old in order]),
        confidence=None if tree.confidence is None else tree.confidence[order],
        distribution_of=None if tree.distribution_of is None else tuple(tree.distribution_of[old] for old in order),
    )


def rectangle(nodes: int) -> tuple[int, int]:
    """Return width and depth of the largest tree of that many nodes at least as deep as wide, and nearly square."""
    width = math.isqrt(nodes)
    return width, nodes // width


def comb(nodes: int) -> str:
    """Write the branching of a tree that branches at its root and runs on in chains, filling the same rectangle."""
    width, depth = rectangle(nodes)
    return "x".join(map(str, [width] + [1] * (depth - 1)))
