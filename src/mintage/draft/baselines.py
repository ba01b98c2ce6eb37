"""Rivals under the same contract: what a user would pick instead of the papers' methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.contract import Context, Drafter, Scorer
from mintage.draft.core.model_drafter import ModelDrafter, tiny_draft_model
from mintage.draft.core.tree import TokenTree, Topology, comb
from mintage.draft.core.verify import RecursiveRejection, Verifier
from mintage.draft.rsd import LevelGrowth, check_levels, gumbel_noise, gumbel_top_k
from mintage.options import option

__all__ = ["Chain", "Plain", "PromptLookup", "SpecInfer", "independent_draws"]

_PRIOR = (0.35, 0.6, 0.75)  # chance that the next token repeats, after a match of 1, 2, 3 or more tokens
_PRIOR_WEIGHT = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Plain(Drafter):
    """Autoregressive decoding: every tree is the root alone."""

    def propose(self, context: Context) -> TokenTree:
        """Draft nothing."""
        return TokenTree.root_only(context.root)

    @classmethod
    def tiny(cls) -> Plain:
        """Make an instance for the laws."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptLookup(Drafter):
    """Prompt lookup (Saxena 2023): the last n-gram occurred before, so draft what followed it then.

    As in transformers, longer n-grams are tried first; unlike there, the most recent occurrence wins.

    Parameters
    ----------
    length
        Tokens to draft.
    ngram
        Longest n-gram to look for.
    """

    length: int = option(10, "Tokens to draft.", least=1)
    ngram: int = option(3, "Longest n-gram to look for.", least=1)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Draft one chain of them."""
        return {"": f"length={nodes}"}

    def begin(self, target: Scorer, context: Context) -> None:
        """Start the request's record of how often a match of n tokens was right: right, tried."""
        context.memory[self] = [[p * _PRIOR_WEIGHT, _PRIOR_WEIGHT] for p in _PRIOR]

    def propose(self, context: Context) -> TokenTree:
        """Draft one chain."""
        ids = context.ids
        for size in range(min(self.ngram, len(ids) - 1), 0, -1):
            windows = ids[:-1].unfold(0, size, 1)
            found = (windows == ids[-size:]).all(1).nonzero()
            if len(found):
                start = int(found[-1]) + size
                drafted = ids[start : start + self.length]
                right, tried = context.memory[self][min(size, len(_PRIOR)) - 1]
                depth = torch.arange(len(drafted) + 1, device=ids.device)
                return TokenTree(
                    tokens=torch.cat([ids[-1:], drafted]),
                    topology=Topology.chain(len(drafted)),
                    confidence=(right / tried) ** depth,
                )
        return TokenTree.root_only(context.root)

    def observe(
        self, context: Context, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"], path: Sequence[int]
    ) -> None:
        """Learn how far to trust a match of this many tokens."""
        if len(tree) == 1 or tree.confidence is None:
            return
        confidence = float(tree.confidence[1])
        record = min(context.memory[self], key=lambda record: abs(record[0] / record[1] - confidence))
        record[0] += len(path) - 1
        record[1] += min(len(path), len(tree) - 1)  # the first miss was tried too

    @classmethod
    def tiny(cls) -> PromptLookup:
        """Make an instance for the laws."""
        return cls(length=4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain(ModelDrafter):
    """Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): one drafted chain.

    The same as RSD-C with one child per node.

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary, on its device.
    length
        Tokens to draft (Chen et al. use 4).
    """

    verifier: ClassVar[Verifier] = RecursiveRejection()

    length: int = option(4, "Tokens to draft.", least=1)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Draft one chain of them."""
        return {"speculative chain": f"length={nodes}"}

    def propose(self, context: Context) -> TokenTree:
        """Sample the chain, or take the likeliest tokens at temperature 0."""
        length = min(self.length, context.room)
        if not length:
            return TokenTree.root_only(context.root)
        growth = LevelGrowth(self.session(context), context)
        nodes: list[int] = []
        for level in range(length):
            if level:
                growth.advance(nodes)
            logq, greedy = growth.logq, context.warp.greedy
            noise = torch.zeros_like(logq) if greedy else gumbel_noise(logq, context.generator)
            tokens, _ = gumbel_top_k(logq, noise, 1)
            nodes = growth.hang(torch.zeros_like(tokens[0]), tokens[0])
        return growth.tree()

    @classmethod
    def tiny(cls) -> Chain:
        """Make an instance for the laws."""
        return cls(draft_model=tiny_draft_model(num_hidden_layers=1), length=2)


def independent_draws(
    probs: Float[Tensor, "nodes vocabulary"], counts: Sequence[int], generator: torch.Generator | None
) -> tuple[Int[Tensor, " draws"], Int[Tensor, " draws"]]:
    """Draw ``counts[n]`` tokens from every row n, with replacement, by inverse CDF as `core.warp.draw` does.

    Returns
    -------
    rows, tokens
        Of every draw, by row.
    """
    mass = probs.double().cumsum(-1)
    total = mass[:, -1:].contiguous()
    shape = len(counts), max(counts)
    uniform = torch.rand(shape, dtype=torch.float64, device=probs.device, generator=generator)
    tokens = torch.searchsorted(mass, uniform * total, right=True)
    tokens = tokens.minimum(torch.searchsorted(mass, total))  # rounding up to the total would end past the last token
    wanted = torch.arange(shape[1], device=probs.device) < torch.tensor(counts, device=probs.device)[:, None]
    rows, draws = wanted.nonzero(as_tuple=True)
    return rows, tokens[rows, draws]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpecInfer(ModelDrafter):
    """SpecInfer (Miao et al., ASPLOS 2024, arXiv 2305.09781): independent siblings, multi-step rejection.

    Siblings are drawn from one distribution with replacement, so a token can come twice; every draw is a node and a
    candidate of its own. A repeat could be accepted only after its first draw was rejected, and then never is (P is 0
    there), so its children hang under the first: that node has as many candidates as independent draws from the root
    would give it.
    At temperature 0, where draws would all repeat, the likeliest children are drafted. Not here: several draft models.

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary, on its device; costs one forward per level.
    branching
        Draws below every draw, per level. The default is the paper's.
    """

    verifier: ClassVar[Verifier] = RecursiveRejection(replacement=True)

    branching: tuple[int, ...] = option((1, 1, 3, 1, 1, 1, 1, 1), "Draws below every draw, per level.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self.branching)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Fill a rectangle of that many nodes."""
        return {"SpecInfer": f"branching={comb(nodes)}"}

    @property
    def levels(self) -> int:
        """Levels of the tree below the root; also the draft forwards per round."""
        return len(self.branching)

    @property
    def budget(self) -> int:
        """Most nodes that a tree has, the root not counted."""
        return sum(accumulate(self.branching, mul))

    def propose(self, context: Context) -> TokenTree:
        """Grow the tree level by level; first draws alone are read by the draft model."""
        levels = self.branching[: context.room]
        if not levels:
            return TokenTree.root_only(context.root)
        growth = LevelGrowth(self.session(context), context)
        nodes, times = [0], [1]  # the first draw of every token below its parent, and how often it was drawn
        for level, count in enumerate(levels):
            if level:
                growth.advance(nodes)
            if context.warp.greedy:
                shares, likeliest = growth.probs.topk(min(count, growth.probs.shape[-1]), dim=-1)
                rows, ranks = (shares > 0).nonzero(as_tuple=True)
                tokens = likeliest[rows, ranks]
            else:
                rows, tokens = independent_draws(growth.probs, [count * n for n in times], context.generator)
            draws = list(zip(rows.tolist(), tokens.tolist(), strict=True))
            first: dict[tuple[int, int], int] = {}
            for draw, node in zip(draws, growth.hang(rows, tokens), strict=True):
                first.setdefault(draw, node)
            nodes, times = list(first.values()), list(Counter(draws).values())  # both in order of first draw
        return growth.tree()

    @classmethod
    def tiny(cls) -> SpecInfer:
        """Make an instance for the laws."""
        return cls(draft_model=tiny_draft_model(num_hidden_layers=1), branching=(2, 2))
