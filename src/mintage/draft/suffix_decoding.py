"""SuffixDecoding: draft what followed the longest run of tokens that was seen before, in this text or in past answers.

Oliaro et al., "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications", NeurIPS 2025, arXiv
2411.04975. The last p tokens are looked up for every p, in the request's own text and in the answers to earlier ones.
Below each match hangs a tree of all continuations; its most frequent part is taken, more nodes for longer matches
(section 3: `MAX_SPEC = alpha p`), and the candidate tree with the highest expected
number of accepted tokens is drafted.

The authors walk down suffix trees that they update token by token. Here the places of a match are kept instead: those
of p + 1 tokens are among those of p, and grouping them by what comes next gives the same nodes with the same counts.

Deviation: `confidence`, which shares one budget between drafters, is scaled by how often matches of this length were
right so far. Not here: the authors' hybrid with a draft model (join it by ``suffix-decoding+rsd``), and dropping old
answers by anything but age.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.contract import Context, Drafter, Scorer
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.options import option
from mintage.weights import Artefact

__all__ = ["SuffixDecoding"]

_FORMAT = "mintage suffix-decoding answers 1"
_GAP = -1  # stands between two answers
_EDGES = (1, 2, 4, 8, 16, 32)
"""Lengths of a match, cut into bins within which the drafter learns how far to trust it."""

_PRIOR = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_PRIOR_WEIGHT = 4.0

Ids = Int[np.ndarray, " _"]


@dataclass
class _Memory:
    """What is remembered during a request."""

    trust: list[list[float]] = field(default_factory=lambda: [[p * _PRIOR_WEIGHT, _PRIOR_WEIGHT] for p in _PRIOR])
    drafted: int = 0  # length of the match behind the tree that is being judged
    recorded: int = 0  # generated tokens that are in the drafter's answers


@dataclass(frozen=True, kw_only=True, eq=False)
class SuffixDecoding(Drafter):
    """Drafter of what followed the longest matches.

    Parameters
    ----------
    alpha
        Nodes per matched token (section 3).
    budget
        Most nodes of a tree.
    longest
        Longest match that is told from longer ones.
    keep
        Tokens of past answers to keep, the newest; 0 looks at the request's own text alone.
    """

    alpha: float = option(4.0, "Nodes per matched token.", above=0)
    budget: int = option(24, "Most nodes of a tree.", least=1)
    longest: int = option(32, "Longest match that is told from longer ones.", least=1)
    keep: int = option(200_000, "Tokens of past answers to keep, the newest; 0 keeps none.", least=0)
    _answers: list[Any] = field(default_factory=lambda: [np.empty(0, np.int64)], init=False, repr=False)
    _open: list[Context] = field(default_factory=list, init=False, repr=False)

    def begin(self, target: Scorer, context: Context) -> None:
        """Put the answers of earlier requests away, and start this one's record of how often matches were right."""
        self._file()
        context.memory[self] = _Memory()
        if self.keep:
            self._open.append(context)

    def propose(self, context: Context) -> TokenTree:
        """Draft the best of all candidate trees."""
        text = context.ids.cpu().numpy()
        best: tuple[float, int, list[tuple[int, int, float]]] = (0.0, 0, [])
        for past in (text, self._answers[0]):
            for length, places in self._matches(past, text):
                most = min(self.budget, max(1, int(self.alpha * length)))
                nodes = _frequent(past, places, most, context.room)
                score = sum(share for *_, share in nodes)
                if score > best[0]:
                    best = score, length, nodes
        _, length, nodes = best
        memory: _Memory = context.memory[self]
        memory.drafted = length
        if not nodes:
            return TokenTree.root_only(context.root)
        right, tried = memory.trust[_bin(length)]
        topology = Topology([-1, *(above for above, *_ in nodes)])
        depth = np.array(topology.depth[1:])
        confidence = [1.0, *(np.array([share for *_, share in nodes]) * (right / tried) ** depth)]
        device = context.ids.device
        return TokenTree(
            tokens=torch.tensor([int(context.root), *(token for _, token, _ in nodes)], device=device),
            topology=topology,
            confidence=torch.tensor(confidence, dtype=torch.float32, device=device),
        )

    def _matches(self, past: Ids, text: Ids) -> Iterator[tuple[int, Ids]]:
        """Yield the longest length of every set of places where the text's last tokens ended before."""
        places = np.flatnonzero(past[:-1] == text[-1]) if len(past) else past
        for length in range(1, min(self.longest, len(text)) + 1):
            if not len(places):
                return
            before = places - length
            longer = places[(before >= 0) & (past[before] == text[-1 - length])] if length < len(text) else places[:0]
            if len(longer) < len(places) or length == self.longest:
                yield length, places
            places = longer

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Learn how far to trust a match of this length."""
        memory: _Memory = context.memory[self]
        if len(tree) > 1 and memory.drafted:
            record = memory.trust[_bin(memory.drafted)]
            record[0] += len(path) - 1
            record[1] += min(len(path), max(tree.topology.depth))  # the first miss was tried too

    def _file(self) -> None:
        """Add what was generated since to the answers."""
        new = [self._answers[0]]
        for context in self._open:
            memory: _Memory = context.memory[self]
            answer = context.ids[context.prompt_length :].cpu().numpy()[memory.recorded :]
            if len(answer):
                new += [answer, np.array([_GAP])]
                memory.recorded += len(answer)
        self._answers[0] = np.concatenate(new)[-self.keep :] if self.keep else new[0]
        self._open[:] = [context for context in self._open if not context.memory[self].recorded]

    def save(self, path: str | Path) -> None:
        """Write the past answers to a safetensors file."""
        self._file()
        Artefact({"answers": torch.from_numpy(self._answers[0])}).save(path, _FORMAT)

    def load(self, path: str | Path) -> None:
        """Take past answers from a file that `save` wrote.

        Raises
        ------
        UserError
            The file is missing, damaged, or no such file.
        """
        tensors = Artefact.load(path, _FORMAT, "SuffixDecoding.save").tensors
        answers = tensors.get("answers")
        if answers is None or answers.ndim != 1 or answers.dtype != torch.int64:
            raise UserError(f"{path} holds no answers; write it again with SuffixDecoding.save")
        self._open.clear()
        self._answers[0] = answers.numpy()

    @classmethod
    def tiny(cls) -> SuffixDecoding:
        """Make an instance of small trees."""
        return cls(budget=6, longest=4)


def _bin(length: int) -> int:
    return sum(length >= edge for edge in _EDGES) - 1


def _frequent(past: Ids, places: Ids, most: int, room: int) -> list[tuple[int, int, float]]:
    """Grow the most frequent part of the tree of continuations: parent (1 is the first node), token, share.

    A node's share is its count over its parent's, times the parent's: the empirical chance of the whole path.
    """
    heap: list[tuple[float, int, int, int, int, Ids]] = []  # minus share, order, parent, depth, token, places
    order = 0

    def offer(parent: int, depth: int, share: float, ends: Ids) -> None:
        nonlocal order
        ends = ends[ends + depth < len(past)]
        following = past[ends + depth]
        ends, following = ends[following >= 0], following[following >= 0]
        if len(following) == 1:  # nearly all places of a long match: nothing to group
            order += 1
            heappush(heap, (-share, order, parent, depth, int(following[0]), ends))
            return
        tokens, index, counts = np.unique(following, return_inverse=True, return_counts=True)
        for number, (token, count) in enumerate(zip(tokens.tolist(), counts.tolist(), strict=True)):
            order += 1
            below = ends[index == number]
            heappush(heap, (-share * count / len(following), order, parent, depth, token, below))

    nodes: list[tuple[int, int, float]] = []
    if room > 0:
        offer(0, 1, 1.0, places)
    while heap and len(nodes) < most:
        share, _, parent, depth, token, ends = heappop(heap)
        nodes.append((parent, token, -share))
        if depth < room:
            offer(len(nodes), depth + 1, -share, ends)
    return nodes
