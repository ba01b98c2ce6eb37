"""Drafting inside a cache policy (`mintage.keep`): the text is that of the policy alone, in fewer forwards.

A policy that drops nothing takes rejected tokens back exactly, so drafts are chains on its own cache, each node a
decoding step. A tree is cut to the chain of its first children, and one sequence is served at a time. Not here:
policies that drop or merge entries, since a rejected token would have driven others out; those are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree
from mintage.errors import UserError
from mintage.models import with_cache
from mintage.sessions import Session

__all__ = ["PolicyTarget", "first_chain"]


def first_chain(tree: TokenTree) -> TokenTree:
    """Return the root, its first child, that one's first child, and so on: chosen without a look at any token."""
    if tree.embeddings is not None:
        raise UserError("prompt tokens cannot be read inside a cache policy; use another drafter than ppd there")
    nodes = [0]
    while below := tree.topology.children[nodes[-1]]:
        nodes.append(below[0])
    drafts = None if tree.drafts is None else tree.drafts[:1]
    return tree if len(nodes) == len(tree) else replace(tree, drafts=drafts).keep(nodes)


class _PolicyCache:
    """A policy's cache with what the loop asks of one."""

    def __init__(self, kept: Any) -> None:
        self.kept, self.lengths, self.pending = kept, [0], 0

    @property
    def layers(self) -> Any:
        return self.kept.layers

    def fill(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep an accepted beginning of the chain."""
        for layer in self.kept.layers:
            layer.crop(len(paths[0]) - self.pending)
        self.lengths = [self.lengths[0] + len(paths[0])]


class PolicyTarget(Target):
    """A target under a cache policy.

    Raises
    ------
    UserError
        The policy cannot take tokens back.
    """

    chains = True

    def __init__(self, model: Any, session: Session) -> None:
        name = type(session.policy).__name__
        if not session.policy.crops_exactly:
            raise UserError(
                f"{name} drops entries of {type(model).__name__}'s cache, and rejected drafts would drive others out; "
                "draft without the policy, or under one that drops nothing, e.g. DoubleSparsity"
            )
        self.session = session
        super().__init__(model)

    def beside(self, model: Any) -> Target:
        """Wrap a draft model, on which the policy is not."""
        return Target(model)

    def new_cache(self, batch: int, capacity: int) -> Any:
        """Make one of the policy's caches."""
        if batch > 1:
            raise UserError(
                f"{type(self.session.policy).__name__}'s cache takes tokens back from all rows alike; inside a policy "
                f"draft one sequence at a time, not {batch}"
            )
        return _PolicyCache(self.session.new_cache())

    def open(self, inputs: Any, lengths: Sequence[int], cache: Any) -> Float[Tensor, "batch vocabulary"]:
        """Read the whole prompt as the policy alone does."""
        cache.kept.drafted = 0
        out = self.model(**inputs, **with_cache(self.model, cache.kept), use_cache=True)
        cache.fill(lengths)
        return out.logits[:, -1]

    def score(self, trees: Sequence[TokenTree], cache: Any) -> list[Float[Tensor, "nodes vocabulary"]]:
        """Read a chain, each node as a decoding step."""
        tokens: Int[Tensor, " nodes"] = trees[0].tokens
        cache.pending = cache.kept.drafted = len(tokens)
        positions = torch.arange(len(tokens), device=tokens.device)[None] + cache.lengths[0]
        given = {"input_ids": tokens[None], "position_ids": positions}
        return [self.model(**given, **with_cache(self.model, cache.kept), use_cache=True).logits[0]]

    def _compare_with_paths(self) -> None:
        """A chain needs no masks of trees."""
