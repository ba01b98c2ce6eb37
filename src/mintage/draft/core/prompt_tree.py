"""PPD's dynamic sparse tree: which guesses to verify, and which of them carry how many prompt tokens.

Chen et al., arXiv 2405.18628, section 4. Each *state* m (how many guesses the last accepted node left behind) has a
tree of its own, optimised from calibrated accuracies; the total size is chosen from the measured latency.

Deviations: `optimise_dynamic_tree` counts a round that accepts nothing as one step (the authors' solver as two, see
`empty_step`), serves trees of any size (theirs fail below 20), and needs no ranks beyond those calibrated.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.core.latency import LatencyCurve
from mintage.draft.core.tree import Topology
from mintage.errors import UserError

__all__ = [
    "DynamicTree",
    "StateTree",
    "TreeBuffers",
    "best_paths",
    "build_tree_buffers",
    "choose_limit",
    "optimise_dynamic_tree",
]

_FIRST_STATE_NODES = 10  # the paper's n_1
_LIMITS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 60, 64, 80, 105, 128, 160, 200, 240, 285)
"""Up to the largest tree of the paper's hardware (60, 105 and 285 on its GPUs)."""

RankPath = tuple[int, ...]
"""Which guess a node takes at every depth: (0, 2) is the best first guess, then the third best second guess."""


@dataclass(frozen=True)
class TreeBuffers:
    """A tree of ranks with its prompt tokens, laid out as one input sequence.

    Attributes
    ----------
    topology
        Of the whole input: root, real nodes and prompt tokens.
    tree_indices
        Where each input token comes from in ``[root, guesses (distance-major), prompt tokens]``.
    normal_token_indices
        Positions of the root and the real nodes, which are numbered in this order.
    special_token_indices
        Positions of the prompt tokens of each of them; -1 where it carries fewer.
    """

    topology: Topology
    tree_indices: Int[Tensor, " length"]
    normal_token_indices: Int[Tensor, " normal"]
    special_token_indices: Int[Tensor, "normal copies distances"]

    @property
    def tree_mask(self) -> Float[Tensor, "length length"]:
        """1 where a row's token sees a column's: ancestors and itself."""
        return self.topology.on(torch.device("cpu"))[2].float()

    @property
    def position_ids(self) -> Int[Tensor, " length"]:
        """Depth of every token."""
        return torch.tensor(self.topology.depth)

    @cached_property
    def retrieve_indices(self) -> Int[Tensor, "leaves deepest"]:
        """Real nodes from the root to each leaf, last leaf first, padded with -1."""
        number = {position: i for i, position in enumerate(self.normal_token_indices.tolist())}
        leaves = [
            position
            for position in reversed(number)
            if not any(below in number for below in self.topology.children[position])
        ]
        paths = [torch.tensor([number[p] for p in self.topology.path(leaf)]) for leaf in leaves]
        return torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-1)


def build_tree_buffers(
    paths: Sequence[RankPath], n_special: Sequence[int], distances: int, *, copies: int = 1, ranks: int = 10
) -> TreeBuffers:
    """Lay out a tree: entries sorted by depth, then by path, a prompt token being an extra path element -1, -2, ...

    Parameters
    ----------
    paths
        Prefix-closed rank paths of the real nodes.
    n_special
        Prompt tokens that each of them carries; the root carries `distances`.
    distances
        S, the number of distances guessed.
    copies
        Chains per node (EPT): copy j of a step sees copies j of the steps before it only.
    ranks
        Guesses kept per distance.

    Raises
    ------
    UserError
        A path lacks its prefix, or a node has fewer than one or more than S prompt tokens.
    """
    special = dict(zip(paths, n_special, strict=True))
    for path, count in special.items():
        if len(path) > 1 and path[:-1] not in special:
            raise UserError(f"the tree holds {path} but not {path[:-1]}; add the prefix")
        if not (1 <= count <= distances and len(path) <= distances and 0 <= min(path) <= max(path) < ranks):
            raise UserError(f"node {path} with {count} prompt tokens does not fit S={distances} and {ranks} ranks")
    chains = {
        (node, copy, step): (*node, *(-(copy * distances + j) for j in range(1, step + 1)))
        for node, count in {(): distances, **special}.items()
        for copy in range(copies)
        for step in range(1, count + 1)
    }
    entries = sorted([(), *paths, *chains.values()], key=lambda p: (len(p), p))
    position = {entry: i for i, entry in enumerate(entries)}
    normal = sorted([(), *paths], key=lambda p: (len(p), p))
    positions = torch.full((len(normal), copies, distances), -1)
    source = [0 if not entry else entry[-1] + ranks * (len(entry) - 1) + 1 for entry in entries]
    number = {node: i for i, node in enumerate(normal)}
    for (node, copy, step), entry in chains.items():
        positions[number[node], copy, step - 1] = position[entry]
        source[position[entry]] = (step - 1) * copies + copy - distances * copies
    return TreeBuffers(
        topology=Topology([-1, *(position[entry[:-1]] for entry in entries[1:])]),
        tree_indices=torch.tensor(source),
        normal_token_indices=torch.tensor([position[node] for node in normal]),
        special_token_indices=positions,
    )


# -- the dynamic sparse tree ---------------------------------------------------------------------------------------


def best_paths(accuracies: Float[np.ndarray, "depths ranks"], count: int) -> tuple[list[RankPath], list[float]]:
    """Choose the `count` rank paths with the largest products of accuracies, best first; always prefix-closed.

    Returns
    -------
    paths, values
        The paths and their products: the probability that the whole path is accepted.
    """
    heap: list[tuple[float, int, RankPath]] = []
    above, value = (), 1.0
    paths, values = [], []
    while True:
        if len(above) < len(accuracies):
            for rank, share in enumerate(accuracies[len(above)].tolist()):
                heapq.heappush(heap, (-value * share, len(above) + 1, (*above, rank)))
        if not heap or len(paths) >= count:
            return paths, values
        negative, _, above = heapq.heappop(heap)
        value = -negative
        paths.append(above)
        values.append(value)


@dataclass(frozen=True)
class StateTree:
    """The tree of one state.

    Attributes
    ----------
    paths
        Rank paths of its nodes, most probable first.
    probability
        That each node is the last accepted one; what is missing to 1 is the probability that nothing is accepted.
    n_special
        Prompt tokens per node.
    value
        Expected accepted tokens, F_m.
    """

    paths: tuple[RankPath, ...]
    probability: tuple[float, ...]
    n_special: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class DynamicTree:
    """Trees of the states 1 .. S, and the accepted tokens per step that they promise together (tau)."""

    states: dict[int, StateTree]
    tau: float


def optimise_dynamic_tree(
    accuracies: Float[np.ndarray, "distances ranks"], limit: int, *, copies: int = 1, empty_step: bool = False
) -> DynamicTree:
    """Choose the trees of all states (section 4, dynamic sparse tree).

    Parameters
    ----------
    accuracies
        How often the r-th ranked guess at each distance is right.
    limit
        L, the largest number of nodes and of the prompt tokens that they carry, together.
    copies
        Chains of prompt tokens per node.
    empty_step
        Score like the authors' solver, which counts a round that accepts nothing as an extra step.

    Raises
    ------
    UserError
        `limit` is too small for one node, or an accuracy is no probability.
    """
    distances = len(accuracies)
    if limit < 1 + copies:
        raise UserError(f"limit={limit} leaves no room for a node and its prompt token; pass at least {1 + copies}")
    if not ((accuracies >= 0).all() and (accuracies.sum(1) <= 1 + 1e-6).all()):
        raise UserError("accuracies must be at least 0 and sum to at most 1 at every distance")
    most, least = limit // (1 + copies), max(1, limit // (1 + copies * distances))
    ranked = [best_paths(accuracies[:m], most) for m in range(1, distances + 1)]
    totals = [np.cumsum(values).tolist() for _, values in ranked]
    shares = [[_last_accepted(paths[:n], values[:n]) for n in range(len(paths) + 1)] for paths, values in ranked]
    largest = [len(paths) for paths, _ in ranked]
    choices = [range(min(least, n), n + 1) for n in largest[1:]]
    best, tau = None, -1.0
    for sizes in itertools.product([min(_FIRST_STATE_NODES, largest[0])], *choices):
        gains = [totals[m][n - 1] for m, n in enumerate(sizes)]
        last = [shares[m][n] for m, n in enumerate(sizes)]
        special = [_share_out(p, gains, (limit - n) // copies) for p, n in zip(last, sizes, strict=True)]
        promised = _long_run(last, special, gains, empty_step)
        if promised > tau:
            best, tau = (sizes, last, special, gains), promised
    assert best is not None
    states = {
        m + 1: StateTree(tuple(ranked[m][0][:n]), tuple(probability), tuple(counts), value)
        for m, (n, probability, counts, value) in enumerate(zip(*best, strict=True))
    }
    return DynamicTree(states, tau)


def _last_accepted(paths: Sequence[RankPath], values: Sequence[float]) -> list[float]:
    """Probability of each node to be the last accepted one: its path's minus its children's."""
    left = dict(zip(paths, values, strict=True))
    for path, value in zip(paths, values, strict=True):
        if len(path) > 1:
            left[path[:-1]] -= value
    return [max(left[path], 0.0) for path in paths]


def _share_out(probability: Sequence[float], gains: Sequence[float], budget: int) -> list[int]:
    """Give every node all S prompt tokens, then take away where it costs least, down to `budget`; one always stays."""
    special = [len(gains)] * len(probability)
    loss = [gains[s] - gains[s - 1] for s in range(1, len(gains))]  # from s + 1 prompt tokens to s, if s >= 1
    heap = [(p * loss[-1], node) for node, p in enumerate(probability)] if loss else []
    heapq.heapify(heap)
    for _ in range(min(sum(special) - budget, len(loss) * len(special))):
        node = heapq.heappop(heap)[1]
        special[node] -= 1
        if special[node] > 1:
            heapq.heappush(heap, (probability[node] * loss[special[node] - 2], node))
    return special


def _long_run(
    last: Sequence[Sequence[float]], special: Sequence[Sequence[int]], gains: Sequence[float], empty_step: bool
) -> float:
    """Return tau: the mean of F_m in the long run of the chain of states (state 0: the authors' empty step)."""
    size = len(gains)
    chain = np.zeros((size + 1, size + 1))
    for m in range(size):
        chain[m + 1] = np.bincount(special[m], last[m], minlength=size + 1)
        chain[m + 1, 0 if empty_step else size] += 1 - sum(last[m])
    chain[0, size] = 1
    equations = np.vstack([chain.T - np.eye(size + 1), np.ones(size + 1)])
    stationary = np.linalg.lstsq(equations, np.eye(size + 2)[-1], rcond=None)[0]
    return float(stationary[1:] @ np.array(gains))


def choose_limit(
    accuracies: Float[np.ndarray, "distances ranks"],
    curve: LatencyCurve,
    *,
    copies: int = 1,
    limits: Sequence[int] = _LIMITS,
) -> int:
    """Choose L for this hardware: the one that maximises ``(1 + tau(L)) * T(1) / T(length(L))`` (section 4).

    Speed rises to one peak; limits are tried until it has clearly fallen. Beyond the sizes that were measured the
    curve goes on with its last slope.

    Returns
    -------
    int
        One of `limits`, or 0 where no tree is expected to beat plain decoding.
    """
    best, chosen = 1.0, 0
    plain = float(curve(1))
    for limit in limits:
        if limit < 1 + copies:
            continue
        tau = optimise_dynamic_tree(accuracies, limit, copies=copies).tau
        speed = (1 + tau) * plain / float(curve(1 + copies * len(accuracies) + limit))
        if speed > best:
            best, chosen = speed, limit
        elif speed < 0.9 * best and limit > 64:
            break
    return chosen
