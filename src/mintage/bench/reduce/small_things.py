"""Images of small things on plain ground: what merging by energy is claimed to be good for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional

__all__ = ["small_on_plain"]


def small_on_plain(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], *, seed: int = 0
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Shrink every image to half its sides, and put it at a random place on a canvas of its mean colour."""
    generator = np.random.default_rng(seed)
    made = []
    for image in images:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        small = functional.interpolate(pixels, size=(height, width), mode="area")[0].permute(1, 2, 0)
        canvas = np.broadcast_to(image.mean((0, 1)).round().astype(np.uint8), image.shape).copy()
        top = int(generator.integers(0, image.shape[0] - height + 1))
        left = int(generator.integers(0, image.shape[1] - width + 1))
        canvas[top : top + height, left : left + width] = small.round().byte().numpy()
        made.append(canvas)
    return made
