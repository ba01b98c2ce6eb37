"""Labels of keys in a few bits: rounded between the least and the greatest of a row, packed into bytes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["pack", "quantise", "unpack"]


def quantise(
    labels: Float[Tensor, "*rows channels"], bits: int
) -> tuple[Tensor, Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """Round each row to ``2 ** bits`` levels between its least and greatest value.

    Returns
    -------
    codes
        Whole numbers from 0 to ``2 ** bits - 1``, as floats.
    step, least
        ``codes * step + least`` is the rounded row.
    """
    least = labels.amin(-1, keepdim=True)
    span = labels.amax(-1, keepdim=True) - least
    levels = 2**bits - 1
    step = torch.where(span == 0, 1.0, span / levels).to(labels.dtype)
    return ((labels - least) / step).round().clamp(0, levels), step, least


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put ``8 / bits`` codes into each byte."""
    per = 8 // bits
    parts = codes.to(torch.uint8).unflatten(-1, (-1, per))
    return (parts << torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)
