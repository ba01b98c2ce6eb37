"""Verifiers: the rules that turn a draft tree and what the target says into tokens with exactly its distribution.

`GreedyMatch` and `SampleAndDescend` serve every tree. `RecursiveRejection` uses the draft distributions of trees whose
siblings were drawn without replacement (RSD, DySpec) or with it (SpecInfer). K-SEQ, for independent drafts, stands with
its method in `mintage.draft.spectr`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.core.tree import TokenTree
from mintage.draft.core.warp import Warp, draw

__all__ = [
    "GreedyMatch",
    "RecursiveRejection",
    "SampleAndDescend",
    "TargetProbs",
    "Verdict",
    "Verifier",
    "after_rejection",
    "recursive_rejection",
]


class TargetProbs:
    """What the target says at the nodes of one tree, computed where and when a verifier asks.

    Parameters
    ----------
    logits
        Target logits at every node, penalties already applied.
    best
        The most likely token at every node.
    """

    def __init__(self, logits: Float[Tensor, "nodes vocabulary"], best: Int[Tensor, " nodes"], warp: Warp) -> None:
        self.logits, self.best, self.warp = logits, best, warp

    def probabilities(self, node: int) -> Float[Tensor, " vocabulary"]:
        """Return the warped distribution of the token after `node`."""
        return self.warp.probabilities(self.logits[node])


@dataclass(frozen=True)
class Verdict:
    """Outcome of a round: accepted nodes from the root down (root included), and the one token after them."""

    path: Sequence[int]
    token: int


class Verifier(ABC):
    """Accepts a path of the tree and one more token so that the output distribution is exactly the target's."""

    @abstractmethod
    def verify(self, tree: TokenTree, target: TargetProbs, generator: torch.Generator | None) -> Verdict:
        """Walk down from the root; see the subclasses for the rules."""


class GreedyMatch(Verifier):
    """Temperature 0, any tree: keep a node if it is the most likely token after its parent, all the way up."""

    def verify(self, tree: TokenTree, target: TargetProbs, generator: torch.Generator | None) -> Verdict:
        """Take the deepest path of matches; its last node's most likely token follows."""
        parent, depth, lineage = tree.topology.on(tree.tokens.device)
        miss = tree.tokens != target.best[parent]
        miss[0] = False  # the root is committed
        reached = ~(lineage & miss).any(-1)
        deepest = int((reached * (depth + 1)).max(-1).indices)
        path = tree.topology.path(deepest)
        return Verdict(path, int(target.best[deepest]))


class SampleAndDescend(Verifier):
    """Any temperature, any tree: sample the target itself, and descend while a child carries the sampled token.

    Exact because every emitted token is the target's own sample, whatever the tree is.
    """

    def verify(self, tree: TokenTree, target: TargetProbs, generator: torch.Generator | None) -> Verdict:
        """Sample at each node reached; the first token without a node ends the round."""
        tokens, path = tree.tokens.tolist(), [0]
        while True:
            token = draw(target.probabilities(path[-1]), generator)
            below = [child for child in tree.topology.children[path[-1]] if tokens[child] == token]
            if not below:
                return Verdict(path, token)
            path.append(below[0])


def after_rejection(
    p: Float[Tensor, "*batch vocabulary"],
    q: Float[Tensor, "*batch vocabulary"],
    tokens: Int[Tensor, "*batch"],
    *,
    replacement: bool = False,
) -> tuple[Float[Tensor, "*batch vocabulary"], Float[Tensor, "*batch vocabulary"]]:
    """Return P and Q after a child drawn from Q was rejected: P loses what Q offered, Q loses the child.

    Parameters
    ----------
    p, q
        Target distribution P and draft distribution Q before this child.
    tokens
        The rejected child.
    replacement
        The next sibling is drawn from the same Q again, which therefore stays as it is.

    Notes
    -----
    Where P exceeds Q nowhere, P equals Q and the rejection had probability 0; P stays, so that nothing becomes NaN.
    """
    rest = (p - q).clamp_min(0)
    mass = rest.sum(-1, keepdim=True)
    p = torch.where(mass > 0, rest / mass, p)
    if not replacement:
        q = q.scatter(-1, tokens[..., None], 0.0)
        mass = q.sum(-1, keepdim=True)
        q = torch.where(mass > 0, q / mass, q)
    return p, q


def recursive_rejection(
    target: Float[Tensor, " vocabulary"],
    draft: Float[Tensor, " vocabulary"],
    tokens: Sequence[int],
    uniforms: Sequence[float],
    *,
    replacement: bool = False,
) -> tuple[int, Float[Tensor, " vocabulary"]]:
    """Verify siblings that were drawn in turn from one draft distribution (RSD, arXiv 2402.14160, section 3).

    Child k is accepted if its uniform is below ``P[x] / Q[x]``; otherwise P and Q go on as `after_rejection` says.
    The emitted token, accepted or drawn from the residual, has distribution `target` exactly, however peaked both are.

    Parameters
    ----------
    target, draft
        Distributions of the next token, warped. They are normalised and worked on in float64.
    tokens
        The siblings, in drawing order.
    uniforms
        One number in [0, 1) per sibling.
    replacement
        Whether siblings were drawn independently, repeats included (SpecInfer, arXiv 2305.09781, algorithm 2), rather
        than without replacement.

    Returns
    -------
    index, residual
        Index of the accepted sibling or -1, and the distribution of the token to emit when none is accepted.
    """
    p, q = target.double(), draft.double()
    p, q = p / p.sum(), q / q.sum()
    for k, (token, uniform) in enumerate(zip(tokens, uniforms, strict=True)):
        if not q[token] > 0:  # Q is used up: no draw gives this child, and the ones before it decide alone
            break
        if uniform * q[token] < p[token]:
            return k, p
        p, q = after_rejection(p, q, torch.tensor(token, device=q.device), replacement=replacement)
    return -1, p


@dataclass(frozen=True)
class RecursiveRejection(Verifier):
    """Temperature > 0, siblings drawn from the node's draft distribution: recursive rejection from the root down.

    Parameters
    ----------
    replacement
        Whether siblings were drawn independently; by default without replacement.
    """

    replacement: bool = False

    def verify(self, tree: TokenTree, target: TargetProbs, generator: torch.Generator | None) -> Verdict:
        """Descend into accepted children; the residual of the first node without one gives the last token."""
        tokens, path = tree.tokens.tolist(), [0]
        while True:
            probs = target.probabilities(path[-1])
            below = [child for child in tree.topology.children[path[-1]] if tokens[child] >= 0]
            if not below:
                return Verdict(path, draw(probs, generator))
            uniforms = torch.rand(len(below), dtype=torch.float64, device=probs.device, generator=generator)
            index, residual = recursive_rejection(
                probs,
                tree.distribution(path[-1]),
                [tokens[c] for c in below],
                uniforms.tolist(),
                replacement=self.replacement,
            )
            if index < 0:
                return Verdict(path, draw(residual, generator))
            path.append(below[index])
