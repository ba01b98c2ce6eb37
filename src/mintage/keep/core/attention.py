"""Attention over grouped heads, with what policies need besides the output: the weights themselves.

Queries stay grouped by the key-value head they read, so keys and values are never repeated. Shapes: batch B, query
heads H, key-value heads G, queries Q, entries M, head dimension d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

__all__ = ["attend", "attention_weights", "group", "ungroup", "weights_by_column"]


def group(query: Float[Tensor, "batch heads queries dim"], groups: int) -> Float[Tensor, "batch groups rows dim"]:
    """Put the queries of all heads that read one key-value head below each other: rows = (H / G) x Q."""
    batch, heads, queries, dim = query.shape
    return query.reshape(batch, groups, heads // groups * queries, dim)


def ungroup(rows: Float[Tensor, "batch groups rows dim"], queries: int) -> Float[Tensor, "batch heads queries dim"]:
    """Undo `group`."""
    batch, groups, number, dim = rows.shape
    return rows.reshape(batch, groups * (number // queries), queries, dim)


def _spread(mask: Tensor, share: int) -> Tensor:
    """Repeat a mask [B, 1 or G, Q, M] for the `share` query heads of each group: [B, 1 or G, share x Q, M]."""
    batch, groups, queries, entries = mask.shape
    return mask[:, :, None].expand(batch, groups, share, queries, entries).reshape(batch, groups, -1, entries)


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups entries dim"],
    value: Float[Tensor, "batch groups entries width"],
    *,
    scaling: float,
    visible: Bool[Tensor, "#batch #groups queries entries"] | None = None,
    bias: Float[Tensor, "#batch #groups entries"] | None = None,
) -> Float[Tensor, "batch heads queries width"]:
    """Attend from every query to the visible entries of its group.

    Parameters
    ----------
    query, key, value
        After rotation; entries may lie in any order.
    scaling
        Factor of the scores.
    visible
        True where a query may look; None where every query sees every entry.
    bias
        Added to the scores of an entry, e.g. the logarithm of how many tokens it stands for.
    """
    groups, queries = key.shape[1], query.shape[2]
    share = query.shape[1] // groups
    mask: Tensor | None = None
    if bias is not None:
        mask = bias[:, :, None, :].to(query.dtype)
        if visible is not None:
            mask = mask.masked_fill(~visible, torch.finfo(query.dtype).min)
    elif visible is not None:
        mask = visible
    if mask is not None:
        mask = _spread(mask, share) if mask.shape[2] > 1 else mask
    rows = functional.scaled_dot_product_attention(group(query, groups), key, value, attn_mask=mask, scale=scaling)
    return ungroup(rows, queries)


def attention_weights(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups entries dim"],
    *,
    scaling: float,
    visible: Bool[Tensor, "#batch #groups queries entries"] | None = None,
    bias: Float[Tensor, "batch groups entries"] | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch groups share queries entries"]:
    """Softmax weights in float32, heads apart: [B, G, H / G, Q, M]. A query that sees nothing has weights 0.

    Parameters
    ----------
    softcap
        Scores go smoothly no further than this.
    sinks
        A logit of each head that takes part in every softmax, and whose weight goes nowhere.
    """
    groups, queries = key.shape[1], query.shape[2]
    scores = (group(query, groups) @ key.transpose(-1, -2)).float().mul_(scaling)  # in place: scores are the largest
    scores = scores.unflatten(2, (-1, queries))
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if bias is not None:
        scores += bias[:, :, None, None, :]
    hidden = None if visible is None else ~visible[:, :, None]
    if hidden is not None:
        scores = scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    if sinks is not None:
        logit = sinks.float().view(1, groups, -1, 1, 1).expand(*scores.shape[:4], 1)
        weights = torch.cat((scores, logit), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights if hidden is None else weights.masked_fill(hidden, 0.0)


def weights_by_column(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups entries dim"],
    *,
    scaling: float,
    visible: Callable[[int, int], Tensor | None],
    bias: Float[Tensor, "batch groups entries"] | None = None,
    chunk: int = 64,
    **own: Any,
) -> Float[Tensor, "batch groups entries"]:
    """Attention that each entry receives, summed over all queries and averaged over the query heads of its group.

    Computed `chunk` queries at a time, so that no matrix of queries x entries is ever held, and on a CPU the part that
    is held stays in its caches.

    Parameters
    ----------
    visible
        ``visible(start, stop)`` gives the mask of these queries (as `attention_weights` takes it), or None.
    own
        `softcap` and `sinks` of `attention_weights`.
    """
    total = query.new_zeros(key.shape[:3], dtype=torch.float32)
    for start in range(0, query.shape[2], chunk):
        stop = min(start + chunk, query.shape[2])
        seen, width = visible(start, stop), key.shape[2]
        if seen is not None:  # what all these queries come before costs nothing
            columns = seen.flatten(0, -2).any(0).nonzero()
            width = int(columns[-1]) + 1 if len(columns) else 1
            seen = seen[..., :width]
        part = None if bias is None else bias[..., :width]
        weights = attention_weights(
            query[:, :, start:stop], key[:, :, :width], scaling=scaling, visible=seen, bias=part, **own
        )
        total[..., :width] += weights.sum(3).mean(2)
    return total
