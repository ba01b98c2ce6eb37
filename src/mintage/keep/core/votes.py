"""How the heads of a layer choose tokens together (TokenSelect, steps 2 to 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import check_literals

__all__ = ["Vote", "check_pool", "mean_query", "pooled", "scores_of", "select_tokens", "votes"]

Vote = Literal["soft", "hard", "sum"]
Rotate = Callable[[Tensor, Tensor], Tensor]


def mean_query(
    query: Float[Tensor, "batch heads queries dim"],
    rotate: Rotate | None,
    n_local: int,
    real: Bool[Tensor, "batch queries"] | None = None,
) -> Float[Tensor, "batch heads dim"]:
    """Average a chunk's queries, each turned as far as it stands from the end of the far tokens (step 2).

    Parameters
    ----------
    query
        Without rotation.
    rotate
        ``rotate(x, position_ids)``, or None to average them as they are.
    n_local
        Newest tokens that are not voted on: query i is turned to position ``n_local + i``, keys stay at 0.
    real
        False where a query is padding (on the left).
    """
    if real is None:
        real = query.new_ones(query.shape[0], query.shape[2], dtype=torch.bool)
    if rotate is not None:
        query = rotate(query, n_local + (real.cumsum(1) - 1).clamp(min=0))
    weight = real / real.sum(1, keepdim=True).clamp(min=1)
    return (query * weight[:, None, :, None].to(query.dtype)).sum(2)


@check_literals
def votes(
    scores: Float[Tensor, "batch heads candidates"], rule: Vote = "soft", top_k: int = 1
) -> Float[Tensor, "batch candidates"]:
    """Let the heads vote on candidates (step 4).

    ``"soft"``: every head distributes one vote by its softmax. ``"hard"``: every head names its own `top_k`; ties go to
    the softer vote. ``"sum"``: scores are added, so that heads with large ones decide.
    """
    if rule == "sum":
        return scores.sum(1)
    soft = scores.softmax(-1).nan_to_num(0.0).sum(1)
    if rule == "soft":
        return soft
    named = scores.topk(min(top_k, scores.shape[-1]), sorted=False).indices
    ballots = torch.zeros_like(scores).scatter_(-1, named, 1.0).sum(1)
    return ballots + soft / (scores.shape[1] + 1)


def check_pool(pool: int) -> None:
    """Refuse a width of the pooling that has no middle, or is none."""
    if pool < 0 or (pool and pool % 2 == 0):
        raise UserError(f"pool={pool} has no middle; pass an odd width, or 0 for none")


def pooled(vote: Float[Tensor, "batch candidates"], kernel: int) -> Float[Tensor, "batch candidates"]:
    """Give every candidate the most votes that any within half of `kernel` of it has; 0 changes nothing."""
    if kernel < 2:
        return vote
    return functional.max_pool1d(vote[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]


@check_literals
def select_tokens(
    query: Float[Tensor, "queries heads dim"],
    key: Float[Tensor, "tokens groups dim"],
    *,
    n_init: int,
    n_local: int,
    top_k: int,
    rotate: Rotate | None = None,
    vote: Vote = "soft",
    pool: int = 0,
) -> Int[Tensor, " chosen"]:
    """Choose the tokens that a chunk of queries reads, for one sequence (steps 1 to 5).

    Parameters
    ----------
    query, key
        Without rotation; the chunk's own keys are the last.
    n_init, n_local, top_k
        First tokens, newest tokens, and tokens chosen between them; where that makes all tokens, all are returned.
    rotate, vote, pool
        See `mean_query`, `votes`, and `TokenSelect`.

    Returns
    -------
    Tensor
        Their positions, ascending.

    Raises
    ------
    UserError
        A number of tokens is negative, or `pool` even.
    """
    check_pool(pool)
    for name, number in (("n_init", n_init), ("n_local", n_local), ("top_k", top_k)):
        if number < 0:
            raise UserError(f"{name}={number} is no number of tokens; pass 0 or more")
    tokens = key.shape[0]
    if n_init + top_k + n_local >= tokens:
        return torch.arange(tokens, device=key.device)
    mean = mean_query(query.transpose(0, 1)[None], rotate, n_local)
    vote_ = pooled(votes(scores_of(mean, key[n_init : tokens - n_local].transpose(0, 1)[None]), vote, top_k), pool)
    chosen = vote_[0].topk(top_k).indices.sort().values + n_init
    first = torch.arange(n_init, device=key.device)
    return torch.cat((first, chosen, torch.arange(tokens - n_local, tokens, device=key.device)))


def scores_of(
    mean: Tensor, key: Float[Tensor, "batch groups candidates dim"]
) -> Float[Tensor, "batch heads candidates"]:
    """Scores of step 3: not divided by the root of the dimension, so large that 16 bits would round them by tenths."""
    grouped = mean.unflatten(1, (key.shape[1], -1)).float()
    return (grouped @ key.float().transpose(-1, -2)).flatten(1, 2)
