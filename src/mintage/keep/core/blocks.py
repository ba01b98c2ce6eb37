"""Attention to one block of keys: its output and log-sum-exp, their joining, and its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mintage.keep.core.attention import group, ungroup

__all__ = ["block_gradient", "merge_partials", "partial_attention", "wide"]

_QUERIES = 256
"""Queries whose scores are held at a time."""


def partial_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups entries dim"],
    value: Float[Tensor, "batch groups entries dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch heads queries"]]:
    """Attend to one block of keys.

    Parameters
    ----------
    causal
        Query i sees the keys up to ``entries - queries + i``.

    Returns
    -------
    out
        In float32 or better.
    lse
        Natural log-sum-exp of the scaled scores.
    """
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    outs, lses = [], []
    for _, scores in _scores(query, key, factor, causal):
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp_().to(value.dtype)  # [B, G, H / G, q, M]
        outs.append((weights.flatten(2, 3) @ value).unflatten(2, weights.shape[2:4]).flatten(1, 2))
        lses.append(lse.flatten(1, 2))
    return torch.cat(outs, 2).to(wide(query)), torch.cat(lses, 2)


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Iterable[tuple[int, Tensor]]:
    """Yield the scores of some queries at a time, [B, G, H / G, q, M], with the number of the first of them."""
    groups, entries, queries = key.shape[1], key.shape[2], query.shape[2]
    for start in range(0, queries, _QUERIES):
        rows = query[:, :, start : start + _QUERIES]
        number = rows.shape[2]
        scores = (group(rows, groups) @ key.transpose(-1, -2)).to(wide(query)).unflatten(2, (-1, number)) * scale
        if causal:
            own = torch.arange(entries - queries + start, entries - queries + start + number, device=key.device)
            later = torch.arange(entries, device=key.device) > own[:, None]
            scores = scores.masked_fill(later, -torch.inf)
        yield start, scores


def wide(x: Tensor) -> torch.dtype:
    """Return float32, or better where `x` is."""
    return torch.promote_types(x.dtype, torch.float32)


def merge_partials(
    out: Float[Tensor, "batch heads queries dim"],
    lse: Float[Tensor, "batch heads queries"],
    block_out: Float[Tensor, "batch heads queries dim"],
    block_lse: Float[Tensor, "batch heads queries"],
) -> tuple[Tensor, Tensor]:
    """Join the attention to two blocks of keys; a log-sum-exp of -inf is a block that says nothing."""
    total = torch.logaddexp(lse, block_lse)
    one, two = ((part - total).exp().nan_to_num(0.0)[..., None] for part in (lse, block_lse))
    return out * one + block_out * two, total


def block_gradient(
    travellers: Sequence[Tensor], key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from one block; `travellers` are q, grad of out, lse, and delta."""
    query, grad, lse, delta = travellers
    groups = key.shape[1]
    d_key, d_value = torch.zeros_like(key, dtype=wide(key)), torch.zeros_like(value, dtype=wide(value))
    d_query = []
    for start, scores in _scores(query, key, scale, causal):
        here = slice(start, start + scores.shape[3])
        shape = (scores.shape[2], scores.shape[3])
        weights = (scores - lse[:, :, here].unflatten(1, (groups, -1))[..., None]).exp()
        weights = weights.flatten(2, 3)
        rows, grads = (group(x[:, :, here], groups).to(wide(x)) for x in (query, grad))
        inner = grads @ value.to(grads.dtype).transpose(-1, -2)
        inner = inner - delta[:, :, here].unflatten(1, (groups, -1)).flatten(2, 3)[..., None]
        d_scores = weights * inner * scale
        d_value += weights.transpose(-1, -2) @ grads
        d_key += d_scores.transpose(-1, -2) @ rows
        d_query.append(ungroup(d_scores @ key.to(rows.dtype), shape[1]))
    return torch.cat(d_query, 2), d_key, d_value
