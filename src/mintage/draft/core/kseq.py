"""K-SEQ: choose among K independent draws of one distribution so that what is emitted has another.

Sun et al., "SpecTr", arXiv 2310.15141, section 4 and algorithm 3. Every candidate x in turn is accepted with
probability min(1, p(x) / (rho q(x))), with the smallest rho in [1, K] that leaves a valid residual. It accepts at least
1 - (1 - 1/K)^K > 1 - 1/e as often as the optimal plan.

Not here: the linear program of the optimal plan (it has V^K rows; the tests solve it for small V).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError

__all__ = ["KSeqRate", "first_accepted", "kseq_residual", "kseq_rho", "kseq_select", "normalised", "residual"]

_DUST = 1e-14  # relative rounding error of sums over a vocabulary; no distribution is off by more
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
    so rho is valid whatever `tol` is and the output exact; a coarse `tol` only accepts a little less often.

    Parameters
    ----------
    p, q
        Distributions of the target and of the draft model, warped. They are normalised and worked on in float64.
    k
        Number of candidates, drawn independently from q.
    tol
        Distance from the smallest valid rho.

    Raises
    ------
    UserError
        `k` is below 1, `tol` not positive, or the distributions differ in shape.
    """
    p, q = normalised(p, q)
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
    """Return the distribution of the token to emit after `k` rejections, in float64.

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
        As in `kseq_rho`, or `rho` is not valid for these distributions and this `k`.
    """
    p, q = normalised(p, q)
    _check_count(k)
    rate = kseq_rho(p, q, k) if rho is None else _given_rate(p, q, k, rho)
    return residual(p, q, rate)


def kseq_select(
    p: Float[Tensor, " vocabulary"],
    q: Float[Tensor, " draft_vocabulary"],
    tokens: Sequence[int] | Int[Tensor, " candidates"],
    uniforms: Sequence[float] | Float[Tensor, " uniforms"],
    rho: Float[Tensor, ""] | float | None = None,
) -> tuple[int, Float[Tensor, " vocabulary"]]:
    """Select one of K candidates at one position by K-SEQ.

    Candidate i is accepted, and those after it not looked at, if its uniform is below ``p(x_i) / (rho q(x_i))``. The
    emitted token, accepted or drawn from the residual, has distribution p.

    Parameters
    ----------
    p, q
        Distributions of the target and of the draft model, warped.
    tokens
        The candidates, drawn independently from q, in drawing order; equal ones count as often as they were drawn.
    uniforms
        One number in [0, 1) per candidate.
    rho
        A valid rho for this number of candidates; by default the smallest.

    Returns
    -------
    index, residual
        Index of the accepted candidate or -1, and the distribution of the token to emit when none is accepted.

    Raises
    ------
    UserError
        As in `kseq_residual`; no candidate, a candidate outside the vocabulary, or not one uniform per candidate.
    """
    p, q = normalised(p, q)
    tokens = [int(token) for token in tokens]
    if len(uniforms) != len(tokens):
        raise UserError(f"{len(tokens)} candidates, {len(uniforms)} uniforms; pass one uniform per candidate")
    _check_count(len(tokens))
    if min(tokens) < 0 or max(tokens) >= len(p):
        raise UserError(f"a candidate is outside the vocabulary of {len(p)}: {tokens}")
    rate = kseq_rho(p, q, len(tokens)) if rho is None else _given_rate(p, q, len(tokens), rho)
    return first_accepted(p, q, tokens, uniforms, rate), residual(p, q, rate)


def first_accepted(p: Tensor, q: Tensor, tokens: list[int], uniforms: Sequence[float] | Tensor, rate: KSeqRate) -> int:
    """Return the index of the first candidate that its uniform accepts, or -1; `p` and `q` from `normalised`."""
    u = torch.as_tensor(uniforms, dtype=p.dtype, device=p.device)
    accepted = (u * rate.rho * q[tokens] < p[tokens]).tolist()  # multiplied out: q may be 0
    return accepted.index(True) if True in accepted else -1


def residual(p: Tensor, q: Tensor, rate: KSeqRate) -> Tensor:
    """Return what to draw from after the rejections that `rate` is about; `p` and `q` from `normalised`."""
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


def normalised(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float64 with a total of 1 each.

    Raises
    ------
    UserError
        They differ in shape.
    """
    if p.shape != q.shape:
        raise UserError(
            f"the target's distribution has shape {tuple(p.shape)}, the draft's {tuple(q.shape)}; they must share one "
            "vocabulary"
        )
    return _normalised(p), _normalised(q)


def _normalised(probs: Tensor) -> Tensor:
    """Restore in float64 the total of 1 that float32 has lost; it is the distribution that was sampled."""
    probs = probs.double()
    return probs / probs.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)


def _check_count(k: int) -> None:
    if k < 1:
        raise UserError(f"k={k}; K-SEQ selects among at least 1 candidate")
