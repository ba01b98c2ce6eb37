"""Token Recycling: draft from the candidates that earlier forwards produced and threw away.

Luo et al., "Turning Trash into Treasure", ACL 2025, arXiv 2408.08696. A matrix M keeps, for every token, the k most
likely successors seen after it last time. A draft tree is grown from M alone, whatever the target says at the tree's
nodes, accepted or not, goes back into M. M is kept across requests ("hot start"): the more it has seen the better.

Deviations, both off by default: `budget` replaces the paper's fixed tree by the best one of a given or measured size,
and `recycle_prompt` also recycles the logits of the prompt. Not here: the authors' typical acceptance (not lossless).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintage.draft.adapters import Target
from mintage.draft.contract import Context, Drafter
from mintage.draft.latency import latency_curve
from mintage.draft.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.files import replace_file

__all__ = ["TokenRecycling"]

TEMPLATES = {
    "2.2.2": """
        0 1 2 3 4 5 6 7
        00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70
        000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500
        0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000
        00000 00001 00002 00010 00020 00100 01000 10000
        000000 000001 000100
    """
}
"""The paper's tree of 80 nodes; a path "021" takes successor 0 of the root, then successor 2, then successor 1."""

RANK_ACCEPTANCE = (0.42, 0.12, 0.06, 0.04, 0.03, 0.02, 0.015, 0.012)
"""Prior for how often the token after a node is its r-th recycled successor; the drafter's own counts take over."""

_PRIOR_WEIGHT = 200.0  # rounds' worth of evidence that the prior stands for
_LARGEST, _DEEPEST = 95, 12  # bounds of a tree of automatic size
_FORMAT = "mintage token-recycling table 1"

Path_ = tuple[int, ...]


class _Plan:
    """A tree of rank paths, level by level, ready to be filled from the matrix."""

    def __init__(self, paths: Sequence[Path_], acceptance: Sequence[float], device: torch.device) -> None:
        paths = sorted(paths, key=lambda p: (len(p), p))
        index = {(): 0} | {path: node for node, path in enumerate(paths, start=1)}
        self.topology = Topology([-1, *(index[path[:-1]] for path in paths)])
        self.ranks = torch.tensor([0, *(path[-1] for path in paths)], device=device)
        self.parent = self.topology.on(device)[0]
        ends = np.cumsum(np.bincount(self.topology.depth))
        self.levels = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        value = [1.0, *(float(np.prod([acceptance[rank] for rank in path])) for path in paths)]
        self.confidence = torch.tensor(value, device=device)

    def grow(self, root: Tensor, matrix: Tensor) -> TokenTree:
        tokens = torch.empty(len(self.topology), dtype=torch.long, device=root.device)
        tokens[0] = root
        for level in self.levels:
            tokens[level] = matrix[tokens[self.parent[level]], self.ranks[level]].long()
        return TokenTree(tokens=tokens, topology=self.topology, confidence=self.confidence)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRecycling(Drafter):
    """Drafter that recycles candidate tokens.

    Parameters
    ----------
    k
        Successors kept per token.
    template
        Name of a tree in `TEMPLATES`; used while `budget` is ``"template"``.
    budget
        ``"template"``: the paper's tree. A number: the tree of that many nodes with the highest expected acceptance.
        ``"auto"``: the size that maximises expected tokens per second, from the target's measured latency curve.
    recycle_prompt
        Recycle the prompt's logits too (costs the head over the whole prompt).
    store
        File to load the matrix from at the first request, if it exists; `save` writes it.

    Examples
    --------
    >>> drafter = TokenRecycling(budget="auto")
    >>> model.generate(ids, custom_generate=drafter)  # doctest: +SKIP
    """

    k: int = 8
    template: str = "2.2.2"
    budget: int | Literal["template", "auto"] = "template"
    recycle_prompt: bool = False
    store: str | None = None
    _learned: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k={self.k}; keep at least 1 successor per token")
        if self.template not in TEMPLATES:
            raise UserError(f"unknown template {self.template!r}; known: {', '.join(TEMPLATES)}")
        if isinstance(self.budget, int) and self.budget < 1:
            raise UserError(f"budget={self.budget}; draft at least 1 node, or pass 'auto'")
        if self.budget == "template" and (widest := max(map(max, self._template_paths))) >= self.k:
            raise UserError(f"k={self.k} is too small for template {self.template!r}, which takes successor {widest}")

    @cached_property
    def _template_paths(self) -> list[Path_]:
        return [tuple(map(int, path)) for path in TEMPLATES[self.template].split()]

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def matrix(self) -> Int[Tensor, "vocabulary k"]:
        """The k successors of every token, most likely first; 0 where nothing was seen."""
        return self._learned["matrix"]

    def reset(self) -> None:
        """Forget everything: the next request starts cold."""
        self._learned.clear()

    def save(self, path: str | Path | None = None) -> None:
        """Write what was learned to `path` (default: `store`), as safetensors."""
        target = path or self.store
        if target is None:
            raise UserError("nowhere to save the table; pass a path or set store=")
        with replace_file(target) as temporary:
            save_file({n: t.cpu() for n, t in self._learned.items()}, temporary, metadata={"format": _FORMAT})

    def load(self, path: str | Path) -> None:
        """Replace what was learned by the table in `path`.

        Raises
        ------
        UserError
            The file is missing or not such a table, or holds another k.
        """
        try:
            with safe_open(path, framework="pt") as file:
                if (found := (file.metadata() or {}).get("format")) != _FORMAT:
                    raise UserError(f"{path} is {found!r}, expected {_FORMAT!r}; delete it to start cold")
                learned = {name: file.get_tensor(name) for name in ("matrix", "hits")}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a token-recycling table ({error}); delete it to start cold") from None
        if learned["matrix"].shape[1] != self.k:
            raise UserError(f"{path} keeps k={learned['matrix'].shape[1]} successors, the drafter k={self.k}")
        self._learned.update(learned)

    def begin(self, target: Target, context: Context) -> None:
        """Allocate (or load) the matrix once, and lay out the tree for this request."""
        if not self._learned and self.store and Path(self.store).exists():
            self.load(self.store)
        if not self._learned:
            self._learned["matrix"] = torch.zeros(target.vocabulary, self.k, dtype=torch.int32)
            prior = torch.zeros(self.k + 1, dtype=torch.float64)  # the last entry counts misses
            prior[: min(self.k, 8)] = torch.tensor(RANK_ACCEPTANCE[: self.k], dtype=torch.float64)
            prior[-1] = 1 - prior.sum()
            self._learned["hits"] = prior * _PRIOR_WEIGHT
        if len(self.matrix) != target.vocabulary:
            raise UserError(
                f"the token-recycling table has {len(self.matrix)} rows, the model {target.vocabulary} tokens; "
                "use one drafter per model, or reset()"
            )
        self._learned.update({name: t.to(target.device) for name, t in self._learned.items()})
        context.memory[self] = _Plan(self._paths(target), self.acceptance, target.device)

    @property
    def acceptance(self) -> list[float]:
        """Observed share of accepted nodes whose next token is the r-th recycled successor, r = 0 .. k-1."""
        hits = self._learned["hits"]
        return (hits[:-1] / hits.sum()).tolist()

    def _paths(self, target: Target) -> list[Path_]:
        if self.budget == "template":
            return self._template_paths
        wanted = self.budget if isinstance(self.budget, int) else _LARGEST
        paths, values = best_paths(self.acceptance, wanted, _DEEPEST)
        if self.budget == "auto":
            paths = paths[: max(1, latency_curve(target).best_size(values))]
        return paths

    # -- the method -----------------------------------------------------------------------------------------------

    @property
    def reads_prompt(self) -> bool:
        """Whether the prompt's logits are recycled."""
        return self.recycle_prompt

    def propose(self, context: Context) -> TokenTree:
        """Grow the tree level by level: each node takes its rank's successor of its parent's token."""
        return context.memory[self].grow(context.root, self.matrix)

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Recycle: every node's top-k becomes its token's row; among nodes of one token the last wins."""
        tops = logits.topk(min(self.k, logits.shape[-1]), dim=-1).indices
        self._count(tree.tokens[list(path)], tops[list(path), 0])
        same = tree.tokens[:, None] == tree.tokens
        last = ~same.triu(1).any(1)
        self.matrix[tree.tokens[last], : tops.shape[1]] = tops[last].int()

    def _count(self, tokens: Tensor, following: Tensor) -> None:
        """Count at which rank the matrix held the token that the target now puts after each accepted node."""
        hit = self.matrix[tokens] == following[:, None]
        rank = torch.where(hit.any(1), hit.int().argmax(1), self.k)
        hits = self._learned["hits"]
        hits.index_add_(0, rank, torch.ones_like(rank, dtype=hits.dtype))

    @classmethod
    def tiny(cls) -> TokenRecycling:
        """Make an instance for the laws."""
        return cls(k=8)


def best_paths(acceptance: Sequence[float], count: int, deepest: int) -> tuple[list[Path_], list[float]]:
    """Choose the `count` rank paths with the largest products of per-rank acceptance, best first.

    The set is prefix-closed, because a product never exceeds its prefix's; ties prefer the shorter path.

    Returns
    -------
    paths, values
        The paths and their products.
    """
    heap: list[tuple[float, int, Path_]] = []

    def offer(path: Path_, value: float) -> None:
        heappush(heap, (-value, len(path), path))

    for rank, share in enumerate(acceptance):
        offer((rank,), share)
    paths, values = [], []
    while heap and len(paths) < count:
        negative, depth, path = heappop(heap)
        paths.append(path)
        values.append(-negative)
        if depth < deepest:
            for rank, share in enumerate(acceptance):
                offer((*path, rank), -negative * share)
    return paths, values
