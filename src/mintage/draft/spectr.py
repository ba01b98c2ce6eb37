"""SpecTr: draft K independent continuations, and choose among them by K-SEQ, a near-optimal transport.

Sun, Suresh, Ro, Beirami, Jain and Yu, "SpecTr: Fast Speculative Decoding via Optimal Transport", NeurIPS 2023, arXiv
2310.15141. Emitting a token with the target's law p that lies, as often as possible, among K tokens drawn from the
draft law q is an optimal-transport problem. K-SEQ solves it in almost linear time: every candidate x in turn is
accepted with probability min(1, p(x) / (rho q(x))), with the smallest rho in [1, K] that leaves a valid residual. It
accepts at least 1 - (1 - 1/K)^K > 1 - 1/e as often as the optimal plan.

Beyond the paper: equal prefixes of the drafts share nodes of one tree, so neither model reads them twice (equal drafts
stay candidates of their own, K counts sequences); and at temperature 0, where equal drafts are wasted, the drafts are
the K likeliest first tokens with their greedy continuations. Not here: the linear program of the optimal plan (it has
V^K rows; the tests solve it for small V), and drafts drawn without replacement, for which K-SEQ is invalid
(`mintage.draft.rsd`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.contract import Context
from mintage.draft.core.model_drafter import ModelDrafter
from mintage.draft.core.tree import TokenTree, Topology, rectangle
from mintage.draft.core.verify import TargetLaws, Verdict, Verifier
from mintage.draft.core.warp import draw
from mintage.errors import UserError
from mintage.options import option

__all__ = ["KSEQ", "KSeqRate", "SpecTr", "kseq_residual", "kseq_rho", "kseq_select"]

_DUST = 1e-14  # relative rounding error of sums over a vocabulary; no law is off by more
_SLACK = 1e-9  # how far beyond validity a caller's own rho may be


class KSeqRate(NamedTuple):
    """How often K-SEQ accepts, per position.

    Attributes
    ----------
    rho
        The rule's parameter, in [1, K].
    beta
        Probability that one candidate is accepted, ``sum_x min(q(x), p(x) / rho)``.
    accept_prob
        Probability that one of the K is, ``1 - (1 - beta)^K``.
    """

    rho: Float[Tensor, "*positions"]
    beta: Float[Tensor, "*positions"]
    accept_prob: Float[Tensor, "*positions"]


def kseq_rho(
    p: Float[Tensor, "*positions vocabulary"],
    q: Float[Tensor, "*positions draft_vocabulary"],
    k: int,
    tol: float = 1e-9,
) -> KSeqRate:
    """Find the smallest valid rho by bisection, at all positions at once.

    rho is valid if ``f(rho) = 1 - (1 - beta)^K - rho beta`` is at most 0: no token is then emitted more often as an
    accepted draft than p allows. f does not increase with rho and ``f(K) <= 0``. The bisection returns its upper end,
    so rho is valid whatever `tol` is and the output law exact; a coarse `tol` only accepts a little less often.

    Parameters
    ----------
    p, q
        Laws of the target and of the draft model, warped. They are normalised and worked on in float64.
    k
        Number of candidates, drawn independently from q.
    tol
        Distance from the smallest valid rho.

    Raises
    ------
    UserError
        `k` is below 1, `tol` not positive, or the laws differ in shape.
    """
    p, q = _laws(p, q)
    if not tol > 0:
        raise UserError(f"tol={tol} is not positive; pass the precision of rho, e.g. 1e-9")
    _check_count(k)
    offered = (q > 0).reshape(-1, q.shape[-1]).any(0)  # nothing else overlaps with p
    p, q = p[..., offered], q[..., offered]
    lower = p.new_ones(p.shape[:-1])
    upper = torch.where(_is_valid(_rate(p, q, k, lower), _DUST), lower, float(k))
    for _ in range(max(0, math.ceil(math.log2((k - 1) / tol))) if k > 1 else 0):
        middle = (lower + upper) / 2
        valid = _is_valid(_rate(p, q, k, middle), _DUST)
        upper = torch.where(valid, middle, upper)
        lower = torch.where(valid, lower, middle)
    return _rate(p, q, k, upper)


def kseq_residual(
    p: Float[Tensor, "*positions vocabulary"],
    q: Float[Tensor, "*positions draft_vocabulary"],
    k: int,
    rho: Float[Tensor, "*positions"] | float | None = None,
) -> Float[Tensor, "*positions vocabulary"]:
    """Return the law of the token to emit after `k` rejections, in float64.

    ``r(x) = (p(x) - min(q(x), p(x) / rho) (1 - (1 - beta)^K) / beta) / (1 - beta)^K``, and p itself where rejection
    has probability 0.

    Parameters
    ----------
    p, q, k
        As in `kseq_rho`.
    rho
        A valid rho; by default the smallest.

    Raises
    ------
    UserError
        As in `kseq_rho`, or `rho` is not valid for these laws and this `k`.
    """
    p, q = _laws(p, q)
    _check_count(k)
    rate = kseq_rho(p, q, k) if rho is None else _given_rate(p, q, k, rho)
    return _residual(p, q, rate)


def kseq_select(
    p: Float[Tensor, " vocabulary"],
    q: Float[Tensor, " draft_vocabulary"],
    tokens: Sequence[int] | Int[Tensor, " candidates"],
    uniforms: Sequence[float] | Float[Tensor, " uniforms"],
    rho: Float[Tensor, ""] | float | None = None,
) -> tuple[int, Float[Tensor, " vocabulary"]]:
    """Select one of K candidates at one position by K-SEQ.

    Candidate i is accepted, and those after it not looked at, if its uniform is below ``p(x_i) / (rho q(x_i))``. The
    emitted token, accepted or drawn from the residual, has law p.

    Parameters
    ----------
    p, q
        Laws of the target and of the draft model, warped.
    tokens
        The candidates, drawn independently from q, in drawing order; equal ones count as often as they were drawn.
    uniforms
        One number in [0, 1) per candidate.
    rho
        A valid rho for this number of candidates; by default the smallest.

    Returns
    -------
    index, residual
        Index of the accepted candidate or -1, and the law of the token to emit when none is accepted.

    Raises
    ------
    UserError
        As in `kseq_residual`; no candidate, a candidate outside the vocabulary, or not one uniform per candidate.
    """
    p, q = _laws(p, q)
    tokens = [int(token) for token in tokens]
    if len(uniforms) != len(tokens):
        raise UserError(f"{len(tokens)} candidates, {len(uniforms)} uniforms; pass one uniform per candidate")
    _check_count(len(tokens))
    if min(tokens) < 0 or max(tokens) >= len(p):
        raise UserError(f"a candidate is outside the vocabulary of {len(p)}: {tokens}")
    rate = kseq_rho(p, q, len(tokens)) if rho is None else _given_rate(p, q, len(tokens), rho)
    return _first_accepted(p, q, tokens, uniforms, rate), _residual(p, q, rate)


def _first_accepted(p: Tensor, q: Tensor, tokens: list[int], uniforms: Sequence[float] | Tensor, rate: KSeqRate) -> int:
    u = torch.as_tensor(uniforms, dtype=p.dtype, device=p.device)
    accepted = (u * rate.rho * q[tokens] < p[tokens]).tolist()  # multiplied out: q may be 0
    return accepted.index(True) if True in accepted else -1


def _residual(p: Tensor, q: Tensor, rate: KSeqRate) -> Tensor:
    offered = torch.where(rate.beta > 0, rate.accept_prob / rate.beta, 0.0)  # accepted mass per unit of overlap
    rest = (p - _overlap(p, q, rate.rho) * offered[..., None]).clamp_min(0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > _DUST, rest / mass, p)


def _rate(p: Tensor, q: Tensor, k: int, rho: Tensor) -> KSeqRate:
    beta = _overlap(p, q, rho).sum(-1).clamp_max(1)
    return KSeqRate(rho, beta, -torch.expm1(k * torch.log1p(-beta)))  # 1 - (1 - beta)^k, exact for tiny beta too


def _overlap(p: Tensor, q: Tensor, rho: Tensor) -> Tensor:
    return torch.minimum(q, p / rho[..., None])


def _is_valid(rate: KSeqRate, slack: float) -> Tensor:
    return rate.accept_prob <= rate.rho * rate.beta * (1 + slack)


def _given_rate(p: Tensor, q: Tensor, k: int, rho: Tensor | float) -> KSeqRate:
    rho = torch.as_tensor(rho, dtype=p.dtype, device=p.device).expand(p.shape[:-1])
    rate = _rate(p, q, k, rho)
    if not ((rho >= 1) & _is_valid(rate, _SLACK)).all():
        raise UserError(f"rho={rho.min():.6g} is too small for {k} candidates; leave it out, or pass at most {k}")
    return rate


def _laws(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    if p.shape != q.shape:
        raise UserError(
            f"the target's law has shape {tuple(p.shape)}, the draft's {tuple(q.shape)}; they must share one vocabulary"
        )
    return _normalised(p), _normalised(q)


def _normalised(law: Tensor) -> Tensor:
    """Restore in float64 the total of 1 that a float32 law has lost; it is the law that was sampled."""
    law = law.double()
    return law / law.sum(-1, keepdim=True).clamp_min(torch.finfo(law.dtype).tiny)


def _check_count(k: int) -> None:
    if k < 1:
        raise UserError(f"k={k}; K-SEQ selects among at least 1 candidate")


@dataclass(frozen=True, kw_only=True)
class KSEQ(Verifier):
    """Temperature > 0, independent drafts: K-SEQ at every node from the root down.

    The drafts that share the accepted prefix are independent draws given that prefix, so they are the candidates
    after it. Their number shrinks on the way down; rho and the residual are those of the current number.

    Parameters
    ----------
    tolerance
        Precision of rho; the output law is exact at any.
    """

    tolerance: float = 1e-9

    def verify(self, tree: TokenTree, target: TargetLaws, generator: torch.Generator | None) -> Verdict:
        """Descend while a draft's token is accepted; the residual, or the target after a whole draft, gives the last.

        Raises
        ------
        ValueError
            The tree does not say which sequences were drafted.
        """
        if tree.drafts is None and len(tree) > 1:
            raise ValueError("the tree does not keep its drafts as sequences; K-SEQ needs TokenTree.drafts")
        tokens = tree.tokens.tolist()
        path, surviving = [0], list(tree.drafts or ())
        while True:
            depth = len(path)
            law = target.probabilities(path[-1])
            surviving = [draft for draft in surviving if len(draft) >= depth]
            if not surviving:
                return Verdict(path, draw(law, generator))
            p, q = _laws(law, tree.law(path[-1]))
            candidates = [tokens[draft[depth - 1]] for draft in surviving]
            uniforms = torch.rand(len(candidates), dtype=torch.float64, device=law.device, generator=generator)
            rate = kseq_rho(p, q, len(candidates), self.tolerance)
            index = _first_accepted(p, q, candidates, uniforms, rate)
            if index < 0:
                return Verdict(path, draw(_residual(p, q, rate), generator))
            token = candidates[index]
            surviving = [draft for draft, other in zip(surviving, candidates, strict=True) if other == token]
            path = [0, *surviving[0][:depth]]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpecTr(ModelDrafter):
    """Drafter of K independent continuations.

    One forward of the draft model per depth scores each distinct prefix once. At temperature 0 the drafts are the
    likeliest first tokens, each continued greedily.

    Parameters
    ----------
    draft_model
        A causal LM with the target's vocabulary, on the target's device.
    num_drafts
        K, the number of sequences.
    draft_len
        L, their length.
    tolerance
        Precision of K-SEQ's rho; the output law is exact at any.

    Raises
    ------
    UserError
        A value is out of range.

    Examples
    --------
    >>> drafter = SpecTr(draft_model=small, num_drafts=4, draft_len=4)  # doctest: +SKIP
    >>> generate(model, ids, drafter, temperature=1.0).stats.tokens_per_forward  # doctest: +SKIP
    """

    num_drafts: int = option(8, "K, the number of sequences.", least=1)
    draft_len: int = option(8, "L, their length.", least=1)
    tolerance: float = option(1e-9, "Precision of K-SEQ's rho.", above=0)

    @property
    def verifier(self) -> KSEQ:  # type: ignore[override]  # the base's is a class attribute
        """K-SEQ, to this drafter's tolerance."""
        return KSEQ(tolerance=self.tolerance)

    @classmethod
    def at_nodes(cls, nodes: int) -> dict[str, str]:
        """Fill a rectangle of that many nodes, if all drafts differ."""
        count, length = rectangle(nodes)
        return {"SpecTr": f"num_drafts={count},draft_len={length}"}

    def propose(self, context: Context) -> TokenTree:
        """Draw the sequences level by level, equal prefixes once.

        A node's confidence is the draft model's probability of the path to it.
        """
        session = self.session(context)
        greedy, device = context.warp.greedy, context.ids.device
        tokens, parents, confidence = [int(context.root)], [-1], [1.0]
        laws = [context.warp.probabilities(session.begin_round())[None]]
        count = min(self.num_drafts, int((laws[0] > 0).sum())) if greedy else self.num_drafts
        drafts: list[list[int]] = [[] for _ in range(count)]
        ends, level = [0] * count, [0]  # last node of every sequence; the nodes of the last level
        node_at: dict[tuple[int, int], int] = {}
        length = min(self.draft_len, context.room)
        for depth in range(1, length + 1):
            law, row = laws[-1], {node: row for row, node in enumerate(level)}
            rows = torch.tensor([row[node] for node in ends], device=device)
            if not greedy:
                drawn = _draw_each(law, rows, context.generator)
            elif depth == 1:
                drawn = law[0].topk(count).indices
            else:
                drawn = law.argmax(-1)[rows]
            level = []
            for i, (token, chance) in enumerate(zip(drawn.tolist(), law[rows, drawn].tolist(), strict=True)):
                above = ends[i]
                if (above, token) not in node_at:
                    node_at[above, token] = len(tokens)
                    level.append(len(tokens))
                    tokens.append(token)
                    parents.append(above)
                    confidence.append(confidence[above] * chance)
                ends[i] = node_at[above, token]
                drafts[i].append(ends[i])
            if depth < length:
                new = slice(level[0], level[-1] + 1)
                logits = session.extend(level, torch.tensor(tokens[new], device=device), parents[new])
                laws.append(context.warp.probabilities(logits))
        inner = sum(map(len, laws))  # nodes are numbered as they were scored, so node n was scored n-th
        return TokenTree(
            tokens=torch.tensor(tokens, device=device),
            topology=Topology(parents),
            confidence=torch.tensor(confidence, device=device),
            laws=None if greedy else torch.cat(laws),
            law_of=None if greedy else tuple(n if n < inner else -1 for n in range(len(tokens))),
            drafts=tuple(map(tuple, drafts)),
        )

    @classmethod
    def tiny(cls) -> SpecTr:
        """Make an instance for the laws, with a draft model that disagrees with their targets."""
        from mintage.models import tiny_causal_lm

        return cls(draft_model=tiny_causal_lm(seed=1), num_drafts=3, draft_len=3, tolerance=1e-3)  # fewer sweeps


def _draw_each(
    laws: Float[Tensor, "laws vocabulary"], rows: Int[Tensor, " sequences"], generator: torch.Generator | None
) -> Int[Tensor, " sequences"]:
    """Draw one token per sequence from its row of `laws`, independently, as `core.warp.draw` does for one."""
    mass = laws.double().cumsum(-1)[rows]
    total = mass[:, -1:].contiguous()
    uniform = torch.rand(len(rows), 1, dtype=torch.float64, device=laws.device, generator=generator)
    token = torch.searchsorted(mass, uniform * total, right=True)
    return torch.minimum(token, torch.searchsorted(mass, total)).squeeze(-1)
