"""Random shifts, flips and cut-out (DeVries and Taylor, arXiv 1708.04552) of many images at once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

__all__ = ["augmented"]

_PADDING = 4


def augmented(
    pixels: UInt8[Tensor, "batch height width 3"], generator: torch.Generator, *, cut: int = 8
) -> Float[Tensor, "batch 3 height width"]:
    """Shift, flip and cut out, each image its own way, without a loop over images.

    Parameters
    ----------
    pixels
        0 to 255.
    generator
        Of everything random.
    cut
        Side of the square that is replaced by the image's mean; 0 for none.

    Returns
    -------
    Tensor
        0 to 255: a crop of the image mirrored at its edges by 4 pixels, mirrored from left to right half the time.
    """
    batch, height, width, _ = pixels.shape

    def drawn(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator)

    rows = _mirrored(drawn(2 * _PADDING + 1) - _PADDING + torch.arange(height), height)
    columns = _mirrored(drawn(2 * _PADDING + 1) - _PADDING + torch.arange(width), width)
    columns = torch.where(drawn(2).bool(), columns.flip(1), columns)
    image = torch.arange(batch)[:, None, None]
    out = pixels[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).float()
    if cut:
        top, left = drawn(height) - cut // 2, drawn(width) - cut // 2
        inside_rows = (torch.arange(height) >= top) & (torch.arange(height) < top + cut)
        inside_columns = (torch.arange(width) >= left) & (torch.arange(width) < left + cut)
        hole = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
        out = torch.where(hole, out.mean((2, 3), keepdim=True), out)
    return out


def _mirrored(positions: Int[Tensor, "batch size"], size: int) -> Int[Tensor, "batch size"]:
    """Reflect positions outside 0..size-1, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - positions.abs()).abs()
