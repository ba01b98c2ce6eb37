"""Token Recycling: draft from the candidates that earlier forwards produced and threw away.

Luo et al., "Turning Trash into Treasure", ACL 2025, arXiv 2408.08696. A matrix M keeps, for every token, the k most
likely successors seen after it last time. A draft tree is grown from M alone, whatever the target says at the tree's
nodes, accepted or not, goes back into M. M is kept across requests ("hot start"): the more it has seen the better.

Deviations, both off by default. `budget` replaces the paper's fixed tree by the most promising nodes of each round: the
drafter also keeps how sure the target was of each successor (softmax over its top k) and learns how often one comes
true. `recycle_prompt` also recycles the prompt's logits. Not here: the authors' typical acceptance (not lossless).
Longer than 200 lines: what is learned is checked, kept and loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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

from mintage.draft.contract import Context, Drafter, Scorer
from mintage.draft.core.latency import LatencyCurve, latency_curve
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.files import replace_file
from mintage.options import option

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

_EDGES = (0.01, 0.03, 0.08, 0.2, 0.4, 0.65, 0.9)
"""How sure the target was of a successor, cut into bins within which the drafter learns how often it comes true."""

_MIDDLES = (0.005, 0.02, 0.05, 0.14, 0.3, 0.5, 0.8, 0.95)
_BINS = len(_MIDDLES)
_PRIOR_WEIGHT, _PRIOR_TRUST = 4.0, 0.5  # before anything is learned, half of the target's sureness is believed
_LARGEST, _DEEPEST, _NEGLIGIBLE = 64, 16, 0.01  # bounds of trees of automatic size, and of a node worth a place
_FORMAT = "mintage token-recycling table 1"


def _paths(template: str | Sequence[str | Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the paths of a template, shorter ones first."""
    if isinstance(template, str) and template not in TEMPLATES:
        raise UserError(f"template={template!r} is not one of {', '.join(TEMPLATES)}, and no list of paths")
    given = TEMPLATES[template].split() if isinstance(template, str) else template
    try:
        paths = sorted((tuple(map(int, path)) for path in given), key=lambda p: (len(p), p))
    except (TypeError, ValueError):
        paths = []
    if not paths or () in paths or min(map(min, paths)) < 0 or len(set(paths)) < len(paths):
        raise UserError(f"template={template!r} is no list of different paths; pass e.g. ['0', '1', '00']")
    if lost := next((path for path in paths if path[:-1] and path[:-1] not in paths), None):
        raise UserError(f"template holds {lost} but not {lost[:-1]}, under which it hangs; add it")
    return paths


class _Template:
    """The paper's tree of rank paths, level by level, ready to be filled from the matrix."""

    def __init__(self, template: str | Sequence[str | Sequence[int]], device: torch.device) -> None:
        paths = [(), *_paths(template)]
        index = {path: node for node, path in enumerate(paths)}
        self.topology = Topology([-1, *(index[path[:-1]] for path in paths[1:])])
        self.ranks = torch.tensor([0, *(path[-1] for path in paths[1:])], device=device)
        self.parent = self.topology.on(device)[0]
        ends = np.cumsum(np.bincount(self.topology.depth))
        self.levels = [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def grow(self, root: Tensor, matrix: Tensor, bins: Tensor, rates: Tensor) -> TokenTree:
        """Take, level by level, each node's rank's successor of its parent's token."""
        tokens = torch.empty(len(self.topology), dtype=torch.long, device=root.device)
        confidence = torch.ones(len(self.topology), device=root.device)
        tokens[0] = root
        for level in self.levels:
            above, rank = self.parent[level], self.ranks[level]
            tokens[level] = matrix[tokens[above], rank].long()
            confidence[level] = confidence[above] * rates[rank, bins[tokens[above], rank].long()]
        return TokenTree(tokens=tokens, topology=self.topology, confidence=confidence)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRecycling(Drafter):
    """Drafter that recycles candidate tokens.

    Parameters
    ----------
    k
        Successors kept per token.
    template
        Name of a tree in `TEMPLATES`, or paths, ``["0", "1", "00"]`` or ``[(0,), ...]``; while `budget` is "template".
    budget
        ``"template"``: the paper's tree. A number: in every round that many nodes, the most promising ones. ``"auto"``:
        in every round as many as maximise the expected tokens per second, from the target's measured latency curve.
    recycle_prompt
        Recycle the prompt's logits too (costs the head over the whole prompt).
    store
        File to load the matrix from at the first request, if it exists; `save` writes it.

    Examples
    --------
    >>> drafter = TokenRecycling(budget="auto")
    >>> model.generate(ids, custom_generate=drafter)  # doctest: +SKIP
    """

    k: int = option(8, "Successors kept per token.", least=1)
    template: Literal["2.2.2"] | Sequence[str | Sequence[int]] = option(
        "2.2.2", "The paper's tree, or a list of paths."
    )
    budget: int | Literal["template", "auto"] = option("template", "Nodes per round.", least=1)
    recycle_prompt: bool = option(False, "Recycle the prompt's logits too.")
    store: str | None = option(None, "File to load the matrix from at the first request, if it exists.")
    _learned: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        widest = max(rank for path in _paths(self.template) for rank in path)
        if self.budget == "template" and widest >= self.k:
            raise UserError(f"k={self.k} is too small for template {self.template!r}, which takes successor {widest}")

    # -- the method -----------------------------------------------------------------------------------------------

    @property
    def reads_prompt(self) -> bool:
        """Whether the prompt's logits are recycled."""
        return self.recycle_prompt

    def propose(self, context: Context) -> TokenTree:
        """Grow a tree from the matrix: the template, or the most promising nodes."""
        plan: _Template | LatencyCurve | None = context.memory[self]
        if isinstance(plan, _Template):
            return plan.grow(context.root, self.matrix, self._learned["bins"], self._rates.float())
        return self._best_first(context, plan)

    def _best_first(self, context: Context, curve: LatencyCurve | None) -> TokenTree:
        """Add, one by one, the successor with the highest estimated chance that the whole path to it comes true."""
        most = self.budget if isinstance(self.budget, int) else _LARGEST
        deepest = min(context.room, _DEEPEST)
        floor = 0.0 if curve is None else _NEGLIGIBLE
        rates = self._rates.tolist()
        tokens, parents, values, depths = [int(context.root)], [-1], [1.0], [0]
        heap: list[tuple[float, int, int, int]] = []  # -value, order of arrival, parent, token

        def offer_successors(node: int) -> None:
            if depths[node] < deepest:
                token = tokens[node]
                bins = self._learned["bins"][token].tolist()
                for rank, successor in enumerate(self.matrix[token].tolist()):
                    value = values[node] * rates[rank][bins[rank]]
                    if bins[rank] and value > floor:
                        heappush(heap, (-value, len(heap) + len(tokens) * self.k, node, successor))

        offer_successors(0)
        while heap and len(tokens) <= most:
            value, _, parent, token = heappop(heap)
            tokens.append(token)
            parents.append(parent)
            values.append(-value)
            depths.append(depths[parent] + 1)
            offer_successors(len(tokens) - 1)
        size = 1 + (len(tokens) - 1 if curve is None else curve.best_size(values[1:]))
        device = context.ids.device
        return TokenTree(
            tokens=torch.tensor(tokens[:size], device=device),
            topology=Topology(parents[:size]),
            confidence=torch.tensor(values[:size], device=device),
        )

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Recycle: every node's top-k becomes its token's row; among nodes of one token the last wins."""
        top = logits.topk(min(self.k, logits.shape[-1]), dim=-1)
        successors, scores = top.indices.to(self.matrix.device), top.values.to(self.matrix.device)
        tokens, lived = tree.tokens.to(self.matrix.device), list(path)
        self._count(tokens[lived], successors[lived, 0])
        last = ~(tokens[:, None] == tokens).triu(1).any(1)
        row, width = tokens[last], successors.shape[1]
        self.matrix[row, :width] = successors[last].int()
        sure = scores[last].float().softmax(-1)
        self._learned["bins"][row, :width] = torch.bucketize(sure, self._edges, out_int32=True).add_(1).to(torch.uint8)

    # -- what it learns -------------------------------------------------------------------------------------------

    @property
    def matrix(self) -> Int[Tensor, "vocabulary k"]:
        """The k successors of every token, most likely first; 0 where nothing was seen."""
        return self._learned["matrix"]

    @property
    def _edges(self) -> Tensor:
        return torch.tensor(_EDGES, device=self.matrix.device)

    @property
    def _rates(self) -> Float[Tensor, "k bins"]:
        """How often a successor of this rank came true, by how sure the target was of it; bin 0 was never seen."""
        return self._learned["came"] / self._learned["tried"]

    def _count(self, tokens: Tensor, following: Tensor) -> None:
        """Count which successors of the accepted nodes' tokens the target now confirms."""
        bins = self._learned["bins"][tokens].long()
        came = (self.matrix[tokens] == following[:, None]) & (bins > 0)
        index = bins + torch.arange(self.k, device=bins.device) * (_BINS + 1)
        for name, amount in (("tried", bins > 0), ("came", came)):
            counts = self._learned[name]
            counts.view(-1).index_add_(0, index.flatten(), amount.flatten().to(counts.dtype))

    def begin(self, target: Scorer, context: Context) -> None:
        """Allocate (or load) what is learned once, and get the tree's shape or the latency curve for this request."""
        if not self._learned and self.store and Path(self.store).exists():
            self.load(self.store)
        if not self._learned:
            trust = torch.tensor([0.0, *_MIDDLES], dtype=torch.float64).expand(self.k, -1) * _PRIOR_TRUST
            self._learned.update(
                matrix=torch.zeros(target.vocabulary, self.k, dtype=torch.int32),
                bins=torch.zeros(target.vocabulary, self.k, dtype=torch.uint8),
                came=trust * _PRIOR_WEIGHT,
                tried=torch.full_like(trust, _PRIOR_WEIGHT),
            )
        if len(self.matrix) != target.vocabulary:
            raise UserError(
                f"the token-recycling table has {len(self.matrix)} rows, the model {target.vocabulary} tokens; "
                "use one drafter per model, or reset()"
            )
        # growing node by node reads single rows, which a GPU is slow at
        home = target.device if self.budget == "template" else torch.device("cpu")
        self._learned.update({name: t.to(home) for name, t in self._learned.items()})
        if self.budget == "template":
            context.memory[self] = _Template(self.template, target.device)
        else:
            context.memory[self] = latency_curve(target) if self.budget == "auto" else None

    def reset(self) -> None:
        """Forget everything: the next request starts cold."""
        self._learned.clear()

    def save(self, path: str | Path | None = None) -> None:
        """Write what was learned to `path` (default: `store`), as safetensors."""
        if (target := path or self.store) is None:
            raise UserError("nowhere to save the table; pass a path or set store=")
        if not self._learned:
            raise UserError("there is no table to save yet; generate something first")
        with replace_file(target) as temporary:
            save_file({n: t.cpu() for n, t in self._learned.items()}, temporary, metadata={"format": _FORMAT})

    def load(self, path: str | Path) -> None:
        """Replace what was learned by the table in `path`.

        Raises
        ------
        UserError
            The file is missing, damaged or not such a table, or holds another k.
        """
        try:
            with safe_open(path, framework="pt") as file:
                if (found := (file.metadata() or {}).get("format")) != _FORMAT:
                    raise UserError(f"{path} is {found!r}, expected {_FORMAT!r}; delete it to start cold")
                learned = {name: file.get_tensor(name) for name in ("matrix", "bins", "came", "tried")}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a token-recycling table ({error}); delete it to start cold") from None
        if learned["matrix"].ndim == 2 and learned["matrix"].shape[1] != self.k:
            raise UserError(f"{path} keeps k={learned['matrix'].shape[1]} successors, the drafter k={self.k}")
        if not _is_sound(**learned):
            raise UserError(f"{path} holds values that no token-recycling table has; delete it to start cold")
        self._learned.update(learned)

    @classmethod
    def tiny(cls) -> TokenRecycling:
        """Make an instance for the laws."""
        return cls(k=8)


def _is_sound(matrix: Tensor, bins: Tensor, came: Tensor, tried: Tensor) -> bool:
    """Whether a stored table can be used without reading outside it, whoever wrote it."""
    if matrix.ndim != 2 or not matrix.numel() or bins.shape != matrix.shape:
        return False
    if (matrix.dtype, bins.dtype, came.dtype, tried.dtype) != (torch.int32, torch.uint8, torch.float64, torch.float64):
        return False
    if not came.shape == tried.shape == (matrix.shape[1], _BINS + 1):
        return False
    in_range = 0 <= int(matrix.min()) <= int(matrix.max()) < len(matrix) and int(bins.max()) <= _BINS
    return in_range and bool(((came >= 0) & (came <= tried) & (tried > 0) & tried.isfinite()).all())
