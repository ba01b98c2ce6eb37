"""Attention where each query reads a few keys: which ones as a mask, two ways to evaluate it, and what it would cost.

Not here: how the keys are guessed (`mintage.reduce.core.connectivity`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import check_literals

__all__ = [
    "Backend",
    "best_keys",
    "connectivity_mask",
    "gather_attention",
    "keys_read",
    "masked_attention",
    "mhsa_macs",
    "sparse_attention",
]

Backend = Literal["masked", "gather"]


def keys_read(keep_rate: float | int, tokens: int) -> int:
    """Return how many keys a patch reads."""
    return math.ceil(keep_rate * tokens)


def connectivity_mask(
    approx: Float[Tensor, "batch heads patches tokens"],
    keep_rate: float = 0.25,
    *,
    threshold: float | None = None,
    tokens: int | None = None,
) -> Bool[Tensor, "batch heads tokens tokens"]:
    """Return which keys each query reads; the prefix, whose queries are not in `approx`, reads all.

    Parameters
    ----------
    approx
        Guessed attention.
    keep_rate
        Every patch reads ``ceil(keep_rate * tokens)`` keys.
    threshold
        Read what is above it instead, be it many or none.
    tokens
        How many there were before any was pruned; default those in `approx`.
    """
    count = approx.shape[-1]
    if threshold is not None:
        mask = approx > threshold
    else:
        index = best_keys(approx, keep_rate, tokens)
        mask = torch.zeros_like(approx, dtype=torch.bool).scatter(-1, index, True)
    return functional.pad(mask, (0, 0, count - approx.shape[2], 0), value=True)


def best_keys(approx: Tensor, keep_rate: float | int, tokens: int | None) -> Int[Tensor, "batch heads patches budget"]:
    """Return the keys that each patch reads: those of the largest guessed attention."""
    count = approx.shape[-1]
    return approx.topk(min(keys_read(keep_rate, tokens or count), count), sorted=False).indices


def masked_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens value"],
    mask: Bool[Tensor, "batch heads tokens tokens"],
    scaling: float,
) -> Float[Tensor, "batch heads tokens value"]:
    """Attend where the mask allows, by torch's fused kernel over all scores; a query that may read nothing gets 0."""
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return torch.where(mask.any(-1, keepdim=True), out, 0.0)


def gather_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens value"],
    index: Int[Tensor, "batch heads patches budget"],
    scaling: float,
) -> Float[Tensor, "batch heads tokens value"]:
    """Attend to the keys that `index` names, the last queries; those before them read everything."""
    batch, heads, tokens, _ = key.shape
    first = tokens - index.shape[2]
    rows = index + tokens * torch.arange(batch * heads, device=index.device).view(batch, heads, 1, 1)
    keys, values = (functional.embedding(rows, x.flatten(0, 2)) for x in (key, value))
    scores = keys @ query[:, :, first:, :, None] * scaling
    weights = scores.softmax(3, dtype=torch.promote_types(scores.dtype, torch.float32))
    out = (weights.to(value.dtype).transpose(3, 4) @ values).squeeze(3)
    if not first:
        return out
    dense = functional.scaled_dot_product_attention(query[:, :, :first], key, value, scale=scaling)
    return torch.cat([dense, out], 2)


@check_literals
def sparse_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens value"],
    mask: Bool[Tensor, "batch heads tokens tokens"],
    backend: Backend = "masked",
    scaling: float | None = None,
) -> Float[Tensor, "batch heads tokens value"]:
    """Attend where the mask allows.

    Parameters
    ----------
    query, key, value
        Of one layer.
    mask
        True where a query (row) reads a key.
    backend
        ``"gather"`` needs a mask whose rows are full up to some row, and from there on all equally filled.
    scaling
        Factor of the scores; default ``dim ** -0.5``.

    Raises
    ------
    UserError
        An unknown backend, or a mask that ``"gather"`` cannot serve.
    """
    scaling = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    if backend == "masked":
        return masked_attention(query, key, value, mask, scaling)
    filled = mask.sum(-1).flatten(0, 1)
    full = (filled == mask.shape[-1]).all(0).long().cumprod(0).sum().item()
    rest = filled[:, int(full) :]
    if rest.numel() and rest.min() != rest.max():
        raise UserError("backend gather needs as many keys in every row; use backend=masked with a threshold")
    if not rest.numel():
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    index = mask[:, :, int(full) :].nonzero()[:, -1].view(*mask.shape[:2], rest.shape[1], -1)
    return gather_attention(query, key, value, index, scaling)


def mhsa_macs(
    *, tokens: int, dim: int, heads: int, read: int, channels: int = 0, low: int = 0, prefix: int = 1,
    coefficients: int = 8, basis: float = 0.0
) -> int:  # fmt: skip
    """Multiply-adds of one layer's attention block for one image, as the paper counts them; not what any backend runs.

    Parameters
    ----------
    tokens, dim, heads, prefix
        Of the layer.
    read
        Keys that one head reads over all queries, i.e. the ones in its mask; ``tokens ** 2`` is dense attention.
    channels, low
        Of the predictor; 0 for none.
    coefficients
        Kept per query.
    basis
        Entries that are not 0, per column of the basis.
    """
    head_dim, patches = dim // heads, tokens - prefix
    predictor = 2 * tokens * head_dim * channels + channels * tokens * low + patches * channels * low
    predictor += round(patches * min(coefficients, low) * basis) if low else 0
    return 4 * tokens * dim**2 + heads * (predictor + 2 * read * head_dim)
