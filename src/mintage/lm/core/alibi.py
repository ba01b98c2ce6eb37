"""ALiBi for encoders: attention falls off with distance, on both sides, at a slope of each head's own.

Press et al. 2022 for the slopes (arXiv 2108.12409); symmetric as in MosaicBERT. The bias is made for the length at
hand, in float32, some queries at a time, so that no length is too long for a table.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mintage.errors import UserError

__all__ = ["ScoreBias", "alibi_bias", "alibi_slopes", "biased_attention"]

FILLING = -10_000.0
"""Added to the scores of what is no token."""

QUERIES = 1024
"""Whose scores are biased at once."""

EXACT = 512
"""Keys up to which rows are read by a plain softmax: that of torch's fused kernel for CPUs is off by 1e-5."""


def alibi_slopes(n_heads: int) -> Float[Tensor, " heads"]:
    """Return the slope of every head: 2^(-8(h+1)/n), and for a number that is no power of two those of the next lower
    power, followed by every second one of the next higher power.

    Raises
    ------
    UserError
        `n_heads` is below 1.
    """
    if n_heads < 1:
        raise UserError(f"n_heads={n_heads} is no number of heads; pass at least 1")
    power = 1 << (n_heads.bit_length() - 1)
    slopes = _of_power(power)
    if power < n_heads:
        slopes = torch.cat([slopes, _of_power(2 * power)[::2][: n_heads - power]])
    return slopes.float()


def _of_power(n: int) -> Tensor:
    return 2.0 ** (-8 * torch.arange(1, n + 1, dtype=torch.float64) / n)


def alibi_bias(n_heads: int, length: int) -> Float[Tensor, "heads length length"]:
    """Return what is added to the scores: minus slope times distance."""
    return ScoreBias(alibi_slopes(n_heads), length)[0:length][0]


class ScoreBias:
    """What is added to the scores of a batch, for some queries at a time: ``bias[start:stop]``.

    Parameters
    ----------
    slopes
        Of the heads; zeros where positions are told otherwise.
    length
        Tokens of a row.
    tokens
        Which places of a row hold tokens; None: all.
    """

    def __init__(
        self, slopes: Float[Tensor, " heads"], length: int, tokens: Bool[Tensor, "batch length"] | None = None
    ) -> None:
        self.slopes, self.length = slopes, length
        self.keys = None if tokens is None else (~tokens).to(slopes.dtype)[:, None, None] * FILLING
        self.kept = self._made(0, length) if length <= QUERIES else None  # one for all layers

    def __getitem__(self, some: slice) -> Float[Tensor, "rows heads queries length"]:
        """Return the bias of queries, for one row that stands for all, or for each."""
        if self.kept is not None:
            return self.kept[:, :, some]
        return self._made(some.start, some.stop)

    def _made(self, start: int, stop: int) -> Tensor:
        places = torch.arange(self.length, device=self.slopes.device)
        distance = (places[start:stop, None] - places).abs().to(self.slopes.dtype)
        bias = -self.slopes[None, :, None, None] * distance
        return bias if self.keys is None else bias + self.keys


def biased_attention(
    query: Float[Tensor, "batch heads length size"],
    key: Float[Tensor, "batch heads length size"],
    value: Float[Tensor, "batch heads length size"],
    bias: ScoreBias,
    dropout: float = 0.0,
    exact: bool = True,
) -> Float[Tensor, "batch heads length size"]:
    """Return softmax(q k^T / sqrt(size) + bias) v, for `QUERIES` queries at a time.

    By the fused kernel, up to four times as fast, if it need not be `exact`, and for rows longer than `EXACT`.
    """
    found = []
    for start in range(0, query.shape[2], QUERIES):
        stop = min(start + QUERIES, query.shape[2])
        mask, some = bias[start:stop].to(query.dtype), query[:, :, start:stop]
        if dropout or not exact or key.shape[2] > EXACT:
            found.append(F.scaled_dot_product_attention(some, key, value, attn_mask=mask, dropout_p=dropout))
        else:
            scores = some @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
            found.append((scores + mask).softmax(-1) @ value)
    return torch.cat(found, 2) if found else query
