"""PPD: a few trained input embeddings make the frozen model itself guess several tokens ahead.

Chen et al., "Hardware-Aware Parallel Prompt Decoding", EMNLP 2025, arXiv 2405.18628. S *prompt tokens* stand after the
last token; the logits at the i-th guess the token i + 1 steps ahead. The best guesses form a sparse tree, every node of
which carries prompt tokens of its own, so that one forward verifies this round's guesses and makes the next round's.
Ordinary tokens never see prompt tokens: the output is the model's own, whatever the embeddings are.

The *state* m is how many guesses the last accepted node left behind (its number of prompt tokens); each state has a
tree of its own (`mintage.draft.core.prompt_tree`). Several copies of a prompt token (EPT) work in drafting too.

Not here: training (`mintage.draft.training.ppd`), the authors' typical acceptance (not lossless), and a part in a
`Union` (prompt tokens are no candidates of a shared budget).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.catalog import resolve
from mintage.draft.contract import Context, Drafter, Scorer
from mintage.draft.core.latency import latency_curve
from mintage.draft.core.prompt_tokens import PromptTokens
from mintage.draft.core.prompt_tree import StateTree, build_tree_buffers, choose_limit, optimise_dynamic_tree
from mintage.draft.core.tree import TokenTree
from mintage.options import option

__all__ = ["PPD"]


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
    limit: int | Literal["auto"] = option("auto", "L, room for at least a node and its prompt token.", least=2)
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Count nodes and their prompt tokens together."""
        return {"PPD": f"limit={max(nodes, 2)}"}

    @property
    def tokens(self) -> PromptTokens:
        """The prompt tokens, loaded when first asked for."""
        if isinstance(self.prompt_tokens, PromptTokens):
            return self.prompt_tokens
        if "tokens" not in self._kept:
            self._kept["tokens"] = PromptTokens.load(self.prompt_tokens)
        return self._kept["tokens"]

    def check(self, target: Scorer) -> None:
        """Refuse a target that the prompt tokens are not for."""
        self.tokens.check(target)

    def begin(self, target: Scorer, context: Context) -> None:
        """Check that the prompt tokens are the target's, and lay out the trees; nothing is guessed yet (m = 0)."""
        self.check(target)
        none = context.ids.new_zeros(0, self.tokens.ranks)
        context.memory[self] = _Memory(self._plans(target), none)

    def _plans(self, target: Scorer) -> list[_Plan] | None:
        tokens = self.tokens
        accuracies = tokens.accuracies.numpy()
        limit = self.limit
        if limit == "auto":
            curve = latency_curve(target)
            if curve not in self._kept:
                self._kept[curve] = choose_limit(accuracies, curve, copies=tokens.copies)
            limit = self._kept[curve]
        if not limit:
            return None
        key = limit, target.device
        if key not in self._kept:
            states = optimise_dynamic_tree(accuracies, limit, copies=tokens.copies).states
            self._kept[key] = [_Plan(states.get(m), tokens, target.device) for m in range(tokens.distances + 1)]
        return self._kept[key]

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
        random = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
        vocabulary = resolve("mintage.models:TINY_VOCABULARY")
        return cls(prompt_tokens=PromptTokens(random, vocabulary=vocabulary, model="the laws' toys"), limit=24)
