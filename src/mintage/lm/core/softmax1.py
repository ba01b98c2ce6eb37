"""Softmax with a one in the denominator, as attention functions that models of transformers can be switched to.

A head whose keys were all deleted, or are all far below 0, attends to nothing instead of to whatever is left (MrT5,
arXiv 2410.20771, section 3; Miller 2023). ``"softmax1_eager"`` and ``"softmax1_sdpa"`` are what ``"eager"`` and
``"sdpa"`` are for the softmax; importing this module registers both, with their masks. Not here: who switches.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

__all__ = ["EAGER1", "SDPA1", "score_penalty", "softmax1", "softmax1_eager", "softmax1_sdpa"]

EAGER1, SDPA1 = "softmax1_eager", "softmax1_sdpa"


def softmax1(scores: Float[Tensor, ...], dim: int = -1) -> Float[Tensor, ...]:
    """Return ``exp(s_i) / (1 + sum_j exp(s_j))``: ``softmax([0, s])`` without its first part.

    Rows sum to less than one; a score of -inf counts as no key at all.
    """
    # the one is the exponential of a 0 in front; so written it is one kernel, forward and backward, and never overflows
    return F.pad(scores.movedim(dim, -1), (1, 0)).softmax(-1)[..., 1:].movedim(-1, dim)


def score_penalty(
    scores: Float[Tensor, "*rows keys"], floor: float = 5.0, hidden: Bool[Tensor, "*#rows keys"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean of what scores have above `floor`, masked ones (`hidden`) counting as none (appendix D)."""
    above = scores.clamp(min=floor) - floor
    return (above if hidden is None else above.masked_fill(hidden, 0)).mean()


def softmax1_eager(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    value: Float[Tensor, "batch heads keys width"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    penalties: list[Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch queries heads width"], Float[Tensor, "batch heads queries keys"]]:
    """Attend, scores and weights in full; the keyword arguments are those of transformers' attention functions.

    Parameters
    ----------
    penalties
        Takes the `score_penalty` of scores before the mask, and so before what a gate adds, but for a decoder's
        self-attention. What a mask hides from all (half the lowest number and less) is no score.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    mask = _additive(attention_mask, scores)
    if penalties is not None and not getattr(module, "is_causal", False):
        penalties.append(score_penalty(scores, hidden=None if mask is None else mask < _lowest(mask) / 2))
    if mask is not None:
        scores = scores + mask
    weights = softmax1(scores.float()).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def softmax1_sdpa(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    value: Float[Tensor, "batch heads keys width"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch queries heads width"], Float[Tensor, "batch heads queries keys"] | None]:
    """Attend by torch's fused kernel: a key of zeros with a value of zeros, in front, is the one in the denominator.

    Where gradients or penalties are asked for there is no fused kernel for such masks, so it is `softmax1_eager`.
    """
    parts = [part for part in (position_bias, _additive(attention_mask, query)) if part is not None]
    bias = sum(parts[1:], parts[0]) if parts else None
    if kwargs.get("penalties") is not None or (torch.is_grad_enabled() and bias is not None and bias.requires_grad):
        return softmax1_eager(
            module, query, key, value, attention_mask,
            scaling=scaling, dropout=dropout, position_bias=position_bias, **kwargs,
        )  # fmt: skip
    out = F.scaled_dot_product_attention(
        query,
        _behind_zero(key, -2),
        _behind_zero(value, -2),
        attn_mask=None if bias is None else _behind_zero(bias, -1),
        dropout_p=dropout if module.training else 0.0,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _behind_zero(tensor: Tensor, dim: int) -> Tensor:
    """Put a slice of zeros in front; `torch.nn.functional.pad` would write every place twice."""
    return torch.cat([torch.zeros_like(tensor.narrow(dim, 0, 1)), tensor], dim)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask that is added to scores; one of bools says what is seen."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, torch.finfo(like.dtype).min)


def _lowest(mask: Tensor) -> float:
    return torch.finfo(mask.dtype).min


for _name, _function in ((EAGER1, softmax1_eager), (SDPA1, softmax1_sdpa)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, eager_mask)  # without one of its own a mask would be None, silently
