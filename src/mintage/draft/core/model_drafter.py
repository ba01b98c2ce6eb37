"""A smaller model that guesses for the target: any causal LM with the same vocabulary, kept in step with the request.

It has a key-value cache of its own and grows a tree level by level, one forward per level whatever the width.
`ModelDrafter` is the base of all drafters that ask such a model: a subclass says how a tree grows, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.catalog import resolve
from mintage.draft.contract import Context, Drafter, Scorer
from mintage.draft.core.tree import TokenTree
from mintage.errors import UserError

__all__ = ["DraftSession", "ModelDrafter", "open_session", "tiny_draft_model"]


def open_session(model: Any, target: Scorer, context: Context) -> DraftSession:
    """Start drafting for one request with `model`.

    Raises
    ------
    UserError
        `model` is not a causal LM, has another vocabulary, lies on another device, was made for shorter sequences, or
        cannot branch.
    """
    if not hasattr(model, "get_output_embeddings"):
        raise UserError(f"draft_model is {type(model).__name__}, expected a causal LM, e.g. load_causal_lm(name).model")
    draft = target.beside(model)
    if draft.vocabulary != target.vocabulary:
        raise UserError(
            f"the draft model has {draft.vocabulary} tokens, the target {target.vocabulary}; "
            "they must share one vocabulary"
        )
    if draft.device != target.device:
        raise UserError(f"the draft model is on {draft.device}, the target on {target.device}; move one of them")
    longest = len(context.ids) + context.room
    if draft.positions and longest > draft.positions:
        raise UserError(
            f"prompt and new tokens are {longest}, the draft model's context {draft.positions}; shorten them, "
            "or draft without this model"
        )
    return DraftSession(draft, context)


class DraftSession:
    """The draft model's side of one request.

    A round is: `begin_round` (reads the tokens committed since the last one, returns the distribution after the root),
    any number of `extend` (one level each), and, after verification, `commit` with the accepted nodes.

    Node numbers are those of the tree under construction: 0 is the root, and nodes are numbered in the order in which
    the drafter adds them. Only nodes that get children need to be extended; leaves cost no draft forward.
    """

    def __init__(self, draft: Any, context: Context) -> None:
        self.draft, self.context = draft, context
        self.cache = draft.new_cache(1, len(context.ids) + context.room + 64)
        self._clear()

    def _clear(self) -> None:
        """Drop all pending columns: those of the tree under construction."""
        self.nodes: list[int] = []  # tree node of every pending column
        self.ancestors: list[list[int]] = []  # pending columns on the path to it, itself included
        self.below: dict[tuple[int, int], int] = {}  # parent node and token, to the first such node
        self.depth: list[int] = []

    @property
    def seen(self) -> int:
        """Committed tokens in the draft model's cache."""
        return self.cache.lengths[0]

    def begin_round(self) -> Float[Tensor, " vocabulary"]:
        """Read what was committed since the last round, the root last, and return the draft logits after the root."""
        ids = self.context.ids
        self.cache.fill([min(self.seen, len(ids) - 1)])  # a tree left unverified, or tokens taken back, are forgotten
        self._clear()
        missing = ids[self.seen :][None]
        new = missing.shape[1]
        self.context.draft_forwards += 1
        self.context.draft_tokens += new
        if not self.seen:  # the whole prompt, whose own logits nobody needs
            return self.draft.prefill(missing, [new], self.cache)[0, -1]
        positions = torch.arange(self.seen, len(ids), device=ids.device)[None]
        lineage = torch.ones(1, new, new, dtype=torch.bool, device=ids.device).tril()
        logits = self.draft.extend(missing, positions, lineage, self.cache)[0, -1]
        self.cache.commit([range(new)])
        return logits

    def extend(
        self, nodes: Sequence[int], tokens: Int[Tensor, " nodes"], parents: Sequence[int]
    ) -> Float[Tensor, "nodes vocabulary"]:
        """Score one level.

        Parameters
        ----------
        nodes
            Tree numbers of the new nodes.
        tokens
            Their tokens.
        parents
            Tree numbers of their parents, each the root (0) or extended before.

        Returns
        -------
        Tensor
            Draft logits after each new node.
        """
        column = {node: i for i, node in enumerate(self.nodes)}
        first = len(self.nodes)
        for i, (node, token, above) in enumerate(zip(nodes, tokens.tolist(), parents, strict=True)):
            self.below.setdefault((above, token), node)
            path = [] if above == 0 else self.ancestors[column[above]]
            self.ancestors.append([*path, first + i])
            self.depth.append(len(path) + 1)
            self.nodes.append(node)
        lineage = torch.zeros(1, len(nodes), len(self.nodes), dtype=torch.bool)
        for i, path in enumerate(self.ancestors[first:]):
            lineage[0, i, path] = True
        positions = torch.tensor(self.depth)[None] + self.seen - 1
        device = tokens.device
        self.context.draft_forwards += 1
        self.context.draft_tokens += len(nodes)
        return self.draft.extend(tokens[None], positions.to(device), lineage.to(device), self.cache)[0]

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Return the extended nodes that spell `tokens` from the root's children down, as far as there are any.

        What a drafter commits: the accepted nodes may be numbered otherwise, or drafted by another drafter of a union.
        """
        nodes, above = [], 0
        for token in tokens:
            node = self.below.get((above, token))
            if node is None:
                break
            nodes.append(node)
            above = node
        return nodes

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows of accepted nodes; those never extended are read in the next round."""
        column = {node: i for i, node in enumerate(self.nodes)}
        self.cache.commit([[column[node] for node in path if node in column]])
        self._clear()


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelDrafter(Drafter):
    """A drafter that asks a draft model: opens its side of a request and keeps its cache in step with what is accepted.

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary, on its device; its dtype may be another.
    """

    draft_model: Any = field(repr=False)

    def begin(self, target: Scorer, context: Context) -> None:
        """Open the draft model's side of the request; `open_session` tells which models it refuses."""
        context.memory[self] = open_session(self.draft_model, target, context)

    def session(self, context: Context) -> DraftSession:
        """Return the draft model's side of a request that has begun."""
        return context.memory[self]

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Keep the draft model's cache rows of what was accepted."""
        session = self.session(context)
        session.commit(session.follow(tree.tokens[list(path[1:])].tolist()))


def tiny_draft_model(**settings: Any) -> Any:
    """Make a random draft model of the vocabulary of the laws' targets."""
    return resolve("mintage.models:tiny_causal_lm")(seed=1, **settings)
