"""Recursive speculative decoding: draft a tree of siblings that differ, and verify it by recursive rejection.

Jeon et al., "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement", ICLR 2024
workshop on LLM agents, arXiv 2402.14160. Independent siblings repeat each other; here they are drawn without
replacement, by the Gumbel-Top-k trick with a fixed number of children (RSD-C), or by stochastic beam search (Kool et
al., ICML 2019, arXiv 1903.06059) with a fixed number of nodes per level (RSD-S).

The verification rule is `core.verify.recursive_rejection`; whether it pays is a question for `core.acceptance`.
Not here: stopping below an end token (the loop drops what follows one), and training of draft models.
Longer than 200 lines: both ways of drawing, and the growth by levels that the baselines share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mintage.draft.contract import Context
from mintage.draft.core.model_drafter import DraftSession, ModelDrafter, tiny_draft_model
from mintage.draft.core.tree import TokenTree, Topology, comb, rectangle
from mintage.draft.core.verify import RecursiveRejection, Verifier
from mintage.errors import UserError
from mintage.options import option

__all__ = ["RSD", "LevelGrowth", "beam_step", "check_levels", "gumbel_noise", "gumbel_top_k", "stochastic_beam_step"]


# -- drawing without replacement ----------------------------------------------------------------------------------


def gumbel_noise(logq: Float[Tensor, "*shape"], generator: torch.Generator | None) -> Float64[Tensor, "*shape"]:
    """Draw independent Gumbel(0, 1) numbers, always finite, for what `logq` gives a chance; the rest gets 0.

    No noise lifts a log-probability of -inf, and most of a distribution is that after top-p, or below a head that knows
    only frequent tokens.
    """
    possible = logq > -torch.inf
    uniform = torch.rand(int(possible.sum()), dtype=torch.float64, device=logq.device, generator=generator)
    noise = torch.zeros(logq.shape, dtype=torch.float64, device=logq.device)
    noise[possible] = -(-uniform.clamp_min_(torch.finfo(torch.float64).tiny).log_()).log_()
    return noise


def gumbel_top_k(
    logq: Float[Tensor, "nodes vocabulary"], gumbel: Float[Tensor, "nodes vocabulary"], k: int
) -> tuple[Int[Tensor, "nodes k"], Float[Tensor, "nodes k"]]:
    """Draw k tokens per node without replacement from ``exp(logq)``, in drawing order (RSD-C, section 3.1).

    Parameters
    ----------
    logq
        Log-probabilities; -inf is never drawn.
    gumbel
        Independent Gumbel(0, 1) noise.
    k
        At most the vocabulary.

    Returns
    -------
    tokens, perturbed
        The tokens and their ``logq + gumbel``, decreasing. Where a distribution has fewer than k tokens, the last of
        `perturbed` are -inf and their tokens mean nothing.
    """
    perturbed, tokens = (logq + gumbel).topk(k, dim=-1)
    return tokens, perturbed


def stochastic_beam_step(
    phi: Float[Tensor, " beam"],
    score: Float[Tensor, " beam"],
    logq: Float[Tensor, "beam vocabulary"],
    gumbel: Float[Tensor, "beam vocabulary"],
    width: int,
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"], Float[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Take one step of stochastic beam search: sequences without replacement (RSD-S, section 3.2; Kool et al., 2019).

    Every child's perturbed log-probability is conditioned on the largest among its siblings being its parent's, so that
    the scores of all levels are those of one Gumbel-Top-k over whole sequences. Conditioning keeps the order of
    siblings, so only the `width` first of each parent need it.

    Parameters
    ----------
    phi
        Log-probability of the path to each beam node.
    score
        Its perturbed log-probability G.
    logq
        Draft log-probabilities after it.
    gumbel
        Independent Gumbel(0, 1) noise.
    width
        Nodes to keep over all parents.

    Returns
    -------
    parents, tokens, phi, score
        Of the kept children, by decreasing score. Fewer than `width` where the distributions have fewer tokens.
    """
    tokens, perturbed = gumbel_top_k(phi[:, None] + logq, gumbel, min(width, logq.shape[-1]))
    largest = perturbed[:, :1]
    # -log(exp(-G) - exp(-largest) + exp(-perturbed)), in a form that neither overflows nor cancels
    excess = score[:, None] - perturbed + torch.log1p(-torch.exp(perturbed - largest))
    conditioned = score[:, None] - excess.clamp_min(0) - torch.log1p(torch.exp(-excess.abs()))
    parents, ranks, score = _best(conditioned, width)
    tokens = tokens[parents, ranks]
    return parents, tokens, phi[parents] + logq[parents, tokens], score


def beam_step(
    phi: Float[Tensor, " beam"], logq: Float[Tensor, "beam vocabulary"], width: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Take one step of plain beam search: parents, tokens and path log-probabilities of the `width` likeliest."""
    return _best(phi[:, None] + logq, width)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and value of the `count` largest finite scores, largest first."""
    values, flat = scores.flatten().topk(min(count, scores.numel()))
    finite = values > -torch.inf
    values, flat = values[finite], flat[finite]
    return flat // scores.shape[1], flat % scores.shape[1], values


# -- growing a tree -----------------------------------------------------------------------------------------------


class LevelGrowth:
    """A tree that grows by levels: one forward of the draft model, then new nodes below the ones it read.

    Attributes
    ----------
    frontier
        Nodes that may get children now.
    distribution, logq
        Their draft distributions, warped as the target's, and the logarithms in float64; one row per frontier node.
    phi
        Draft log-probability of the path to every node.
    """

    def __init__(self, session: DraftSession, context: Context) -> None:
        self.session, self.warp = session, context.warp
        self.tokens = context.root.reshape(1)
        self.parents = [-1]
        self.phi = torch.zeros(1, dtype=torch.float64, device=context.ids.device)
        self._distributions: list[Tensor] = []
        self._distribution_of: dict[int, int] = {}
        self._read([0], session.begin_round()[None])

    def advance(self, nodes: Sequence[int]) -> None:
        """Let the draft model read `nodes`, which become the frontier."""
        parents = [self.parents[node] for node in nodes]
        self._read(list(nodes), self.session.extend(nodes, self.tokens[list(nodes)], parents))

    def _read(self, nodes: list[int], logits: Float[Tensor, "frontier vocabulary"]) -> None:
        first = len(self._distribution_of)
        self._distribution_of.update({node: first + row for row, node in enumerate(nodes)})
        self.frontier = nodes
        self.probs = self.warp.probabilities(logits)
        if self.probs.isnan().any():
            raise UserError("the draft model returned NaN logits; check its weights, or load it in float32")
        self.logq = self.probs.double().log()
        self._distributions.append(self.probs)

    def hang(self, rows: Int[Tensor, " new"], tokens: Int[Tensor, " new"]) -> list[int]:
        """Hang one new node under each of the frontier's `rows`, siblings in drawing order; return their numbers."""
        above = [self.frontier[row] for row in rows.tolist()]
        self.phi = torch.cat([self.phi, self.phi[above] + self.logq[rows, tokens]])
        self.tokens = torch.cat([self.tokens, tokens])
        self.parents += above
        return list(range(len(self.parents) - len(above), len(self.parents)))

    def tree(self) -> TokenTree:
        """Finish: the distributions that were sampled go along, unless nothing was (temperature 0)."""
        sampled = not self.warp.greedy
        return TokenTree(
            tokens=self.tokens,
            topology=Topology(self.parents),
            confidence=self.phi.exp().float(),
            distributions=torch.cat(self._distributions) if sampled else None,
            distribution_of=tuple(self._distribution_of.get(node, -1) for node in range(len(self.parents)))
            if sampled
            else None,
        )


def check_levels(branching: Sequence[int]) -> None:
    """Refuse a branching without levels."""
    if not branching:
        raise UserError(f"branching={branching} has no level; give every level's children per node, e.g. (4, 2, 1)")


# -- the method ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class RSD(ModelDrafter):
    """Drafter that samples a tree from a draft model without replacement.

    At temperature 0 the draft is deterministic: the likeliest children (RSD-C), or plain beam search (RSD-S).

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary, on its device; costs one forward per level.
    branching
        RSD-C: children of every node, per level, e.g. ``(4, 2, 1)``; `width` and `depth` then do not count.
    width, depth
        RSD-S: nodes kept per level, and levels. The default is the largest tree of the paper's tables, 30 nodes.

    Examples
    --------
    >>> drafter = RSD(draft_model=small, width=6, depth=3)  # doctest: +SKIP
    >>> model.generate(ids, custom_generate=drafter, do_sample=True)  # doctest: +SKIP
    """

    verifier: ClassVar[Verifier] = RecursiveRejection()

    branching: tuple[int, ...] | None = option(None, "Children of every node, per level (RSD-C).", least=1)
    width: int = option(6, "Nodes kept per level (RSD-S).", least=1)
    depth: int = option(5, "Levels (RSD-S).", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.branching is not None:
            check_levels(self.branching)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Fill a rectangle of that many nodes, by either way of drawing."""
        width, depth = rectangle(nodes)
        return {"RSD-C": f"branching={comb(nodes)}", "RSD-S": f"width={width},depth={depth}"}

    @property
    def levels(self) -> int:
        """Levels of the tree below the root; also the draft forwards per round."""
        return self.depth if self.branching is None else len(self.branching)

    @property
    def budget(self) -> int:
        """Most nodes that a tree has, the root not counted."""
        if self.branching is None:
            return self.width * self.depth
        return sum(accumulate(self.branching, mul))

    def propose(self, context: Context) -> TokenTree:
        """Grow the tree level by level; the last level's nodes are leaves, which the draft model never reads."""
        levels = min(self.levels, context.room)
        if not levels:
            return TokenTree.root_only(context.root)
        growth = LevelGrowth(self.session(context), context)
        score = torch.zeros_like(growth.phi)
        nodes: list[int] = []
        for level in range(levels):
            if level:
                growth.advance(nodes)
            rows, tokens, score = self._draw(growth, score, level, context)
            nodes = growth.hang(rows, tokens)
        return growth.tree()

    def _draw(
        self, growth: LevelGrowth, score: Tensor, level: int, context: Context
    ) -> tuple[Int[Tensor, " new"], Int[Tensor, " new"], Float[Tensor, " new"]]:
        """Draw one level: the frontier rows of the new nodes, their tokens and their perturbed log-probabilities."""
        logq, greedy = growth.logq, context.warp.greedy
        noise = torch.zeros_like(logq) if greedy else gumbel_noise(logq, context.generator)
        if self.branching is not None:
            tokens, perturbed = gumbel_top_k(logq, noise, min(self.branching[level], logq.shape[-1]))
            rows, ranks = (perturbed > -torch.inf).nonzero(as_tuple=True)
            return rows, tokens[rows, ranks], perturbed[rows, ranks]
        phi = growth.phi[growth.frontier]
        if greedy:
            return beam_step(phi, logq, self.width)
        rows, tokens, _, score = stochastic_beam_step(phi, score, logq, noise, self.width)
        return rows, tokens, score

    @classmethod
    def tiny(cls) -> RSD:
        """Make an instance for the laws."""
        return cls(draft_model=tiny_draft_model(num_hidden_layers=1), width=3, depth=2)
