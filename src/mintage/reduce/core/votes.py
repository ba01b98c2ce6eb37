"""Votes over the attention graph: every token votes for those it attends to (Zero-TPrune, section 3.2).

Not here: what is done with them (`mintage.reduce.zero_tprune`).
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from mintage.options import check_literals

__all__ = ["among", "combine_heads", "weighted_page_rank"]


def weighted_page_rank(
    attention: Float[Tensor, "batch heads tokens tokens"], iterations: int, *, class_boost: bool = True
) -> Float[Tensor, "batch heads tokens"]:
    """Importance of every token by head: ``s <- A^T s``, which conserves the sum (algorithm 1).

    Parameters
    ----------
    attention
        Probabilities; rows are queries.
    iterations
        Rounds of votes. Many of them end at the left eigenvector of A, whatever the start.
    class_boost
        Whether the first token starts with ``sqrt(tokens)`` votes; the others have one.

    Returns
    -------
    Tensor
        Scores of mean 1.
    """
    tokens = attention.shape[-1]
    score = attention.new_ones(*attention.shape[:2], 1, tokens)
    if class_boost:
        score[..., 0] = math.sqrt(tokens)
    score = score * (tokens / score.sum(-1, keepdim=True))
    for _ in range(iterations):
        score = score @ attention
    return score[:, :, 0]


@check_literals
def combine_heads(
    scores: Float[Tensor, "batch heads tokens"],
    v_min: float | int = 0.01,
    v_max: float | int = 0.7,
    *,
    mean: Literal["square", "plain"] = "square",
) -> Float[Tensor, "batch tokens"]:
    """Root mean square over the heads whose scores vary neither too little nor too much (section 3.2, EIR and VHF).

    Parameters
    ----------
    scores
        Of mean 1, by head.
    v_min, v_max
        Least and greatest variance over the tokens; all heads count where none is between them.
    mean
        ``"plain"`` averages, without the emphasis on regions that only some heads find informative.
    """
    variance = scores.var(-1, correction=0)
    used = (variance >= v_min) & (variance <= v_max)
    used = (used | ~used.any(-1, keepdim=True)).to(scores.dtype)[..., None]
    if mean == "plain":
        return (used * scores).sum(1) / used.sum(1)
    return ((used * scores.square()).sum(1) / used.sum(1)).sqrt()


def among(
    attention: Float[Tensor, "batch heads tokens tokens"], index: Int[Tensor, "batch left"]
) -> Float[Tensor, "batch heads left left"]:
    """Attention among some of the tokens; rows sum to 1 again."""
    heads, tokens = attention.shape[1], attention.shape[-1]
    rows = attention.gather(2, index[:, None, :, None].expand(-1, heads, -1, tokens))
    held = rows.gather(3, index[:, None, None, :].expand(-1, heads, index.shape[1], -1))
    return held / held.sum(-1, keepdim=True).clamp_min(1e-30)
