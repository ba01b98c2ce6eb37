"""PPD: a few trained input embeddings make the frozen model itself guess several tokens ahead.

Chen et al., "Hardware-Aware Parallel Prompt Decoding", EMNLP 2025, arXiv 2405.18628. S *prompt tokens* stand after the
last token; the logits at the i-th guess the token i + 1 steps ahead. The best guesses form a sparse tree, every node of
which carries prompt tokens of its own, so that one forward verifies this round's guesses and makes the next round's.
Ordinary tokens never see prompt tokens: the output is the model's own, whatever the embeddings are.

The *state* m is how many guesses the last accepted node left behind (its number of prompt tokens); each state has a
tree of its own, optimised from calibrated accuracies, and the total size is chosen from the measured latency.

Deviations: `optimise_dynamic_tree` counts a round that accepts nothing as one step (the authors' solver as two, see
`empty_step`), serves trees of any size (theirs fail below 20), and needs no ranks beyond those calibrated. Several
copies of a prompt token (EPT) work in drafting too. Not here: training (`mintage.draft.training.ppd`), the authors'
typical acceptance (not lossless), and a place in a `Union` (prompt tokens are no candidates of a shared budget).
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.draft.contract import Context, Drafter
from mintage.draft.core.latency import LatencyCurve, latency_curve
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.weights import read_weights, write_weights

__all__ = [
    "PPD",
    "DynamicTree",
    "PromptTokens",
    "StateTree",
    "TreeBuffers",
    "best_paths",
    "build_tree_buffers",
    "choose_limit",
    "distill_loss",
    "optimise_dynamic_tree",
]

_FORMAT = "mintage ppd prompt tokens 1"
_ASSETS = Path(__file__).parents[1] / "assets"
_FIRST_STATE_NODES = 10  # the paper's n_1
_LIMITS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)

RankPath = tuple[int, ...]
"""Which guess a node takes at every depth: (0, 2) is the best first guess, then the third best second guess."""


# -- the loss ------------------------------------------------------------------------------------------------------


def distill_loss(
    student: Float[Tensor, "batch distances vocabulary"],
    teacher: Float[Tensor, "batch distances vocabulary"],
    decay: float = 0.8,
) -> Float[Tensor, ""]:
    """KL(teacher || student) in nats, weighted ``decay ** (i - 1)`` at the i-th prompt token (section 3, training).

    Parameters
    ----------
    student, teacher
        Logits at the prompt tokens, and of the model itself after it appended as many of its own tokens.
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean(0)
    weights = decay ** torch.arange(len(divergence), device=divergence.device, dtype=divergence.dtype)
    return (weights * divergence).mean()


# -- the tree ------------------------------------------------------------------------------------------------------


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
    place = {entry: i for i, entry in enumerate(entries)}
    normal = sorted([(), *paths], key=lambda p: (len(p), p))
    positions = torch.full((len(normal), copies, distances), -1)
    source = [0 if not entry else entry[-1] + ranks * (len(entry) - 1) + 1 for entry in entries]
    number = {node: i for i, node in enumerate(normal)}
    for (node, copy, step), entry in chains.items():
        positions[number[node], copy, step - 1] = place[entry]
        source[place[entry]] = (step - 1) * copies + copy - distances * copies
    return TreeBuffers(
        topology=Topology([-1, *(place[entry[:-1]] for entry in entries[1:])]),
        tree_indices=torch.tensor(source),
        normal_token_indices=torch.tensor([place[node] for node in normal]),
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
    """Return tau: the mean of F_m over the stationary law of the chain of states (state 0: the authors' empty step)."""
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
    return chosen


# -- the artefact --------------------------------------------------------------------------------------------------


def describe(target: Target) -> str:
    """Name what prompt tokens are bound to beside width and vocabulary."""
    return f"{target.config.model_type}, {target.config.num_hidden_layers} layers"


class PromptTokens(nn.Module):
    """The trained embeddings, with what they were trained for.

    Parameters
    ----------
    embeddings
        One per distance and copy; distance i (from 1) guesses the token i + 1 ahead.
    vocabulary
        Number of tokens of their model.
    model
        Its name, for messages.
    architecture
        What `describe` says of it; empty fits every architecture of this width and vocabulary.
    accuracies
        Calibrated: how often the r-th guess at each distance is right. By default a mild guess.
    notes
        How they were made; kept in the file.

    Raises
    ------
    UserError
        Shapes do not fit each other.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "distances copies width"],
        *,
        vocabulary: int,
        model: str = "",
        architecture: str = "",
        accuracies: Float[Tensor, "rows ranks"] | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().clone().float())
        self.vocabulary, self.model, self.architecture = vocabulary, model, architecture
        if accuracies is None:
            ranks = 0.5 ** torch.arange(1, min(10, vocabulary) + 1, dtype=torch.float64)
            accuracies = 0.6 * 0.6 ** torch.arange(len(embeddings))[:, None] * ranks
        if len(accuracies) != len(embeddings) or not 1 <= accuracies.shape[1] <= vocabulary:
            raise UserError(
                f"accuracies have shape {tuple(accuracies.shape)}; expected {len(embeddings)} distances "
                f"and at most {vocabulary} ranks"
            )
        self.accuracies = accuracies.double()
        self.notes = dict(notes or {})

    @property
    def distances(self) -> int:
        """S, how many distances are guessed."""
        return self.embeddings.shape[0]

    @property
    def copies(self) -> int:
        """Ensemble size n_ept."""
        return self.embeddings.shape[1]

    @property
    def width(self) -> int:
        """Size of an embedding."""
        return self.embeddings.shape[2]

    @property
    def ranks(self) -> int:
        """Guesses kept per distance."""
        return self.accuracies.shape[1]

    def forward(self) -> Float[Tensor, "distances copies width"]:
        """Return the embeddings."""
        return self.embeddings

    def check(self, target: Target) -> None:
        """Refuse a model that these were not trained for.

        Raises
        ------
        UserError
            Width, vocabulary or architecture differ, or the model takes no embeddings as input.
        """
        if "inputs_embeds" not in inspect.signature(target.model.forward).parameters:
            raise UserError(f"{type(target.model).__name__} takes no inputs_embeds, which prompt tokens need")
        width = target.model.get_input_embeddings().weight.shape[1]
        mine = f"width {self.width}, vocabulary {self.vocabulary}"
        its = f"width {width}, vocabulary {target.vocabulary}"
        if self.architecture:
            mine, its = f"{self.architecture}, {mine}", f"{describe(target)}, {its}"
        if mine != its:
            name = self.model or "another model"
            raise UserError(f"the prompt tokens are for {name} ({mine}), this model has {its}; train its own")

    def save(self, path: str | Path) -> None:
        """Write everything to `path` as one safetensors file."""
        metadata = {
            "model": self.model,
            "architecture": self.architecture,
            "width": str(self.width),
            "vocabulary": str(self.vocabulary),
            "distances": str(self.distances),
            "copies": str(self.copies),
            "notes": json.dumps(self.notes),
        }
        write_weights(path, _FORMAT, {"embeddings": self.embeddings, "accuracies": self.accuracies}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> PromptTokens:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            A file, or the name of a model that mintage ships prompt tokens for (``"smollm2"``).

        Raises
        ------
        UserError
            There is no such file or name, or it is not such a file, is of another version, or contradicts itself.
        """
        shipped = {f.stem.removeprefix("ppd-"): f for f in _ASSETS.glob("ppd-*.safetensors")}
        file_path = shipped.get(str(path), Path(path))
        if not file_path.is_file():
            known = ", ".join(sorted(shipped)) or "none"
            raise UserError(f"no prompt tokens at {str(path)!r}; pass a .safetensors file or one of: {known}")
        tensors, found = read_weights(file_path, _FORMAT, "train it again")
        try:
            tokens = cls(
                tensors["embeddings"],
                vocabulary=int(found["vocabulary"]),
                model=found["model"],
                architecture=found["architecture"],
                accuracies=tensors["accuracies"],
                notes=json.loads(found["notes"]),
            )
        except (KeyError, json.JSONDecodeError) as error:
            raise UserError(f"{file_path} holds no prompt tokens ({error}); train it again") from None
        if (tokens.distances, tokens.copies, tokens.width) != tuple(
            int(found[name]) for name in ("distances", "copies", "width")
        ):
            raise UserError(f"{file_path}: its embeddings and its metadata differ in shape; train it again")
        return tokens


# -- the drafter ---------------------------------------------------------------------------------------------------


class _Plan:
    """The tree of one state, ready to be filled with guesses."""

    def __init__(self, tree: StateTree | None, tokens: PromptTokens, device: torch.device) -> None:
        paths, special = (tree.paths, tree.n_special) if tree else ((), ())
        buffers = build_tree_buffers(paths, special, tokens.distances, copies=tokens.copies, ranks=tokens.ranks)
        self.topology = buffers.topology
        self.source = buffers.tree_indices.to(device)
        embeddings = tokens.embeddings.detach().to(device).flatten(0, 1)
        self.embeddings = embeddings[self.source[self.source < 0]]
        self.probes = torch.full((len(embeddings),), -1, device=device)

    def fill(self, root: Tensor, guesses: Tensor) -> TokenTree:
        pool = torch.cat([root.reshape(1), guesses.flatten(), self.probes])
        return TokenTree(tokens=pool[self.source], topology=self.topology, embeddings=self.embeddings)


@dataclass
class _Memory:
    """Of one request: the trees of the states 0 .. S (None: do not draft), and the guesses at hand."""

    plans: list[_Plan] | None
    guesses: Int[Tensor, "state ranks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PPD(Drafter):
    """Drafter that lets the target guess through trained prompt tokens.

    Parameters
    ----------
    prompt_tokens
        A file written by training, the name of a model that mintage ships them for, or the tokens themselves.
    limit
        L, nodes and their prompt tokens together; ``"auto"`` chooses it from the target's measured latency curve.

    Examples
    --------
    >>> drafter = PPD(prompt_tokens="smollm2")
    >>> model.generate(ids, custom_generate=drafter)  # doctest: +SKIP
    """

    prompt_tokens: str | PromptTokens = "smollm2"
    limit: int | Literal["auto"] = "auto"
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.limit, int) and self.limit < 2:
            raise UserError(f"limit={self.limit} leaves no room for a node and its prompt token; pass at least 2")

    @property
    def tokens(self) -> PromptTokens:
        """The prompt tokens, loaded when first asked for."""
        if isinstance(self.prompt_tokens, PromptTokens):
            return self.prompt_tokens
        if "tokens" not in self._made:
            self._made["tokens"] = PromptTokens.load(self.prompt_tokens)
        return self._made["tokens"]

    def begin(self, target: Target, context: Context) -> None:
        """Check that the prompt tokens are the target's, and lay out the trees; nothing is guessed yet (m = 0)."""
        self.tokens.check(target)
        none = context.ids.new_zeros(0, self.tokens.ranks)
        context.memory[self] = _Memory(self._plans(target), none)

    def _plans(self, target: Target) -> list[_Plan] | None:
        tokens = self.tokens
        accuracies = tokens.accuracies.numpy()
        limit = self.limit
        if limit == "auto":
            curve = latency_curve(target)
            if curve not in self._made:
                self._made[curve] = choose_limit(accuracies, curve, copies=tokens.copies)
            limit = self._made[curve]
        if not limit:
            return None
        key = limit, target.device
        if key not in self._made:
            states = optimise_dynamic_tree(accuracies, limit, copies=tokens.copies).states
            self._made[key] = [_Plan(states.get(m), tokens, target.device) for m in range(tokens.distances + 1)]
        return self._made[key]

    def propose(self, context: Context) -> TokenTree:
        """Fill the tree of the state with the guesses; the first one of a request only asks for guesses."""
        memory: _Memory = context.memory[self]
        if memory.plans is None:
            return TokenTree.root_only(context.root)
        return memory.plans[len(memory.guesses)].fill(context.root, memory.guesses)

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Keep the guesses of the last accepted node's prompt tokens, their copies' logits averaged."""
        children, tokens = tree.topology.children, tree.tokens.tolist()
        chains = []
        for node in children[path[-1]]:
            if tokens[node] == -1:
                chain = [node]
                while children[chain[-1]]:
                    chain.append(children[chain[-1]][0])
                chains.append(chain)
        memory: _Memory = context.memory[self]
        if chains:
            memory.guesses = logits[torch.tensor(chains)].mean(0).topk(self.tokens.ranks, dim=-1).indices
        else:  # cut off near the end of the request
            memory.guesses = memory.guesses[:0]

    @classmethod
    def tiny(cls) -> PPD:
        """Make an instance for the laws: random embeddings, which must do no harm."""
        from mintage.models import TINY_VOCABULARY

        random = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
        return cls(prompt_tokens=PromptTokens(random, vocabulary=TINY_VOCABULARY, model="the laws' toys"), limit=24)
